from laue_dask.runtime import compiled_loops


def test_a_function_is_compiled_where_nothing_can_be_kept_on_disk():
    names: dict = {}
    exec("def twice(x):\n    return 2 * x\n", names)  # noqa: S102  # source of no file: numba finds no cache folder
    assert compiled_loops.compiled(names["twice"])(4) == 8
