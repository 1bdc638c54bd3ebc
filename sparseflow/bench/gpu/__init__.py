"""The kernels of `triton` measured on a GPU: `sparseflow bench --backend triton`.

Every result is checked against float64 before it is timed, on fresh random numbers, in memory that held NaN; what is
wrong is never timed. Times are medians of CUDA graphs whose sides take turns and whose inputs no cache can hold.
"""
