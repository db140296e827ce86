#!/bin/bash
# A real SLURM of one node on the loopback address: slurm_cluster.sh start|stop DIR
# Needs root and the Debian packages slurm-wlm and munge. DIR gets its configuration,
# state and logs; commands find it by SLURM_CONF=DIR/slurm.conf.
set -eu
action=$1 dir=$2
export SLURM_CONF=$dir/slurm.conf

configure() {
  local host port
  host=$(hostname -s)
  port=$((20000 + RANDOM % 10000))
  mkdir -p "$dir/munge" "$dir/state" "$dir/spool"
  # munge insists on folders that only it may write.
  chown -R munge:munge "$dir/munge"
  chmod 755 "$dir" "$dir/munge"
  dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
  chown munge:munge "$dir/munge/key"
  chmod 400 "$dir/munge/key"
  cat > "$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is requeued waits until its credential has expired.
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=${KILL_WAIT:-30}
JobRequeue=1
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
CONF
}

# Each daemon is started in the background and by this script alone, and its id noted.
start() {
  configure
  setpriv --reuid munge --regid munge --clear-groups munged --foreground \
    --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
    --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" \
    --seed-file="$dir/munge/seed" >"$dir/munged.out" 2>&1 &
  echo $! > "$dir/munged.started"
  for _ in $(seq 100); do [ -S "$dir/munge/socket" ] && break; sleep 0.1; done
  slurmctld -D -i >"$dir/slurmctld.out" 2>&1 &
  echo $! > "$dir/slurmctld.started"
  slurmd -D >"$dir/slurmd.out" 2>&1 &
  echo $! > "$dir/slurmd.started"
  for _ in $(seq 300); do
    if [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; then exit 0; fi
    sleep 0.1
  done
  echo "the node did not come up; see the logs in $dir" >&2
  stop
  exit 1
}

stop() {
  local daemon pid
  for daemon in slurmd slurmctld munged; do
    pid=$(cat "$dir/$daemon.started" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
}

"$action"
