# The part of xllamacpp (a compiled module without types) that luthier uses.
class _Model:
    path: str

class _CpuParams:
    n_threads: int

class CommonParams:
    model: _Model
    n_ctx: int
    n_parallel: int
    cpuparams: _CpuParams
    cpuparams_batch: _CpuParams
    hostnames: list[str]
    api_keys: list[str]
    ui: bool
    warmup: bool
    verbosity: int

class Server:
    def __init__(self, params: CommonParams) -> None: ...
    @property
    def listening_address(self) -> str: ...
