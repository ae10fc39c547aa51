# ends: any
yes turnwise >&2
