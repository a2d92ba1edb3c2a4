"""The `anabranch` command; the only place where streamer, learner and serving meet."""
