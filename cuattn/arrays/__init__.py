"""Other people's memory and streams: arrays of any library as a `View`, ordered after their work.

`device` has the facts of GPUs, `caller` the library and the stream of a call.
"""
