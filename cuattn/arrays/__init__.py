"""Other people's memory and streams: arrays of any library as a `View`, in the order of their work.

`device` has the facts of GPUs, `caller` the library and the stream of a call, `pytorch` and
`dlpack` what is asked of an array before its memory is touched, `overlap` whether two arrays share
memory.

May import `errors` and `reference`.
"""
