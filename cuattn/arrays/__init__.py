"""Other people's memory and streams: arrays of any library as a `View`, in the order of their work.

`device` has the facts of GPUs, `caller` the library and the stream of a call, `overlap` whether two
arrays share memory.

May import `errors`, `common` and `reference`.
"""
