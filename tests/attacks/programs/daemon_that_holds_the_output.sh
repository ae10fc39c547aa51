sleep 60 &
disown
echo tried
