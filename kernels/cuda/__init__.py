"""The kernels of compression for a GPU: functions of the same names as on the CPU, with the same arguments and results.

Arrays are in the GPU's memory: whatever has `__cuda_array_interface__`, torch's tensors among them. Kernels run on the
default stream, and a function returns before they have ended unless it returns a number. They need the extra
`hpcvol[cuda]`; without a GPU they run in Numba's simulator (NUMBA_ENABLE_CUDASIM=1), slowly. Hence what they do
without: warps' shuffles and votes, which it does not know.
"""
