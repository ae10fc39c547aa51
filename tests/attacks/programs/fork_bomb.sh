# ends: time limit
bomb() { bomb | bomb & }
bomb
while true; do :; done
