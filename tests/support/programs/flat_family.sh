for number in 1 2 3 4 5 6 7 8 9 10; do
    setsid sleep 600 & echo $!
    sleep 600 & echo $!
done
wait
