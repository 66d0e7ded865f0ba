from concurrent.futures import ThreadPoolExecutor

from threadpoolctl import threadpool_info, threadpool_limits

from laue_dask.runtime.threads import one_thread


def blas():
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_libraries_have_one_thread_within_and_what_they_had_before_afterwards():
    with threadpool_limits(2):
        with one_thread():
            assert blas() == {1}
            with one_thread():
                assert blas() == {1}
            assert blas() == {1}
        assert blas() == {2}


def test_threads_side_by_side_do_not_give_back_what_their_caller_holds():
    def work(_):
        with one_thread():
            seen = blas()
        return seen | blas()

    with threadpool_limits(2), one_thread(), ThreadPoolExecutor(4) as threads:
        assert all(seen == {1} for seen in threads.map(work, range(40)))
