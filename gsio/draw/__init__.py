"""Arrays as pictures and movies: colour maps, limits, PNG and video. Nothing here knows the files of gsio."""
