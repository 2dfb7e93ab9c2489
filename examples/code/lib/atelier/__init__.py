"""The workshop's own library: wood, varnish, strings, instruments, bows, orders and tools of a violin maker.

Every record is a plain dict (see `records`), as it comes from the workshop's JSON files. Functions never change a
record that they are given; they return a new one. Dates are ISO texts, lengths mm, masses g or kg, money EUR, as the
names say.
"""
