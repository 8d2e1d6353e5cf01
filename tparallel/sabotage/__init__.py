"""Known bugs, put into the running program from outside: do our checks notice, and do loss curves?

``patch`` (change lines of a function while the program runs), ``bugs`` (the table, each from a
real report), ``examine`` (every check of one bug), ``curve`` (what it does to the loss).
No module that is broken here knows about it.
"""
