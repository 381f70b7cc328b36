"""Mode `serve`: a page and a JSON API that ground sentences in uploaded videos.

`server` starts it, `guard` stands before `api`, which answers requests, `store` keeps videos and
features, `jobs` encodes, `device` is the one thread that computes, `reading` runs on uploads, in
processes of their own, and `limits` says how much of all that.
"""
