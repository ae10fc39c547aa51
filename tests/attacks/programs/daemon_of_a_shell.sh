(setsid nohup sleep 60 >/dev/null 2>&1 </dev/null &)
echo tried
