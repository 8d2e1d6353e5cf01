"""Is every layout equal to one process?  How that is asked, and how we know that asking works.

``cases`` (which layouts, with which other factors), ``measure`` (one case against serial),
``bounds`` (how large a difference may be, and why), ``pool`` (ranks that run many cases in one
job), ``grid`` (the answers, printed).
"""
