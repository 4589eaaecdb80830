"""Samplers of other projects, run from their own files and judged by enumeration.

None of their code is here. It is taken, when asked for, from a wheel of the package registry or from a checkout, its
hash is checked, and only the module with the sampler is imported: what it imports beside torch is replaced by stubs.
Triton kernels run under Triton's interpreter. So no engine is installed, and no GPU is needed.

    python -m inference_opt.lab.exactness.foreign --download     # fetch the wheels (1.1 GB), then judge all
    python -m inference_opt.lab.exactness.foreign                # judge what is there, name what is not
"""
