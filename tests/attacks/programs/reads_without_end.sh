# ends: time limit
read -r line </dev/zero
