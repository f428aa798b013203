#!/usr/bin/env bash
# A Slurm of one machine for the tests: two nodes with two pretended GPUs each, on loopback, without systemd or cgroups.
#   slurm.sh install      packages from apt (root)
#   slurm.sh start        a fresh Slurm, nothing kept of an earlier one; returns when both nodes are idle
#   slurm.sh env          prints what to eval, so that sbatch and the others find it
#   slurm.sh kill-ctld    stop the controller alone; jobs run on
#   slurm.sh start-ctld   and start it again with the jobs it knew
#   slurm.sh stop         cancel all jobs, stop everything; logs and configuration stay
# Read by start:
#   ACCT=1                with accounting, that is slurmdbd and a MariaDB of its own (root); sacct works only so
#   SIGNAL=term           preempted jobs get SIGTERM alone (default usr2: the signal of their sbatch --signal, if they set one)
#   MAX_ARRAY_SIZE=1001   one more than the largest array index
#   PML_SLURM_PORT=27000  first of five ports
# Read by all: PML_SLURM_DIR, a short path for the state (default: pml-slurm in $TMPDIR or /tmp).
set -euo pipefail

DIR=${PML_SLURM_DIR:-${TMPDIR:-/tmp}/pml-slurm}
PORT=${PML_SLURM_PORT:-27000}
RUN=$DIR/run LOG=$DIR/log
HOST=$(hostname -s)
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$DIR/etc/slurm.conf

install_packages() {
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then # or the packages would start their daemons
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    munge slurmctld slurmd slurm-client slurmdbd mariadb-server
}

slurm_conf() {
  cat <<CONF
ClusterName=pml
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# a requeued job waits until its last credential has expired: 120 s by default
AuthInfo=socket=$RUN/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
MaxArraySize=${MAX_ARRAY_SIZE:-1001}
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
JobRequeue=1
KillWait=3
OverTimeLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 3)) CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 4)) CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=n1,n2 PriorityTier=9 PreemptMode=OFF
CONF
  if [ "${SIGNAL:-usr2}" = usr2 ]; then echo "SlurmctldParameters=preempt_send_user_signal"; fi
  if [ "${ACCT:-0}" = 1 ]; then
    cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$RUN/munge.socket
AccountingStorageTRES=gres/gpu
CONF
  fi
}

slurmdbd_conf() {
  cat <<CONF
AuthType=auth/munge
AuthInfo=socket=$RUN/munge.socket
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
CommunicationParameters=NoInAddrAny
SlurmUser=$(id -un)
PidFile=$RUN/slurmdbd.pid
LogFile=$LOG/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
StorageLoc=slurm
CONF
}

start() {
  local name
  for name in munged mariadbd slurmdbd slurmctld slurmd-n1 slurmd-n2; do
    if runs $name; then die "$name runs already in $DIR: stop it first"; fi
  done
  if [ ${#DIR} -gt 70 ]; then die "PML_SLURM_DIR=$DIR: too long a path for the sockets in it"; fi
  for name in etc log run dev state spool mysql; do rm -rf "${DIR:?}/$name"; done
  mkdir -p "$DIR"/{etc,log,run,dev,state,spool/n1,spool/n2,mysql}
  chmod 755 "$DIR" "$DIR"/{etc,log,run}

  # a GPU is a file whose name ends in its number and that leads to a device: jobs of a plain file see no GPU
  ln -s /dev/null "$DIR/dev/nvidia0"
  ln -s /dev/null "$DIR/dev/nvidia1"
  printf 'AutoDetect=off\nNodeName=n1,n2 Name=gpu File=%s\n' "$DIR/dev/nvidia[0-1]" >"$DIR/etc/gres.conf"
  slurm_conf >"$SLURM_CONF"

  (umask 077 && head -c 128 /dev/urandom >"$DIR/etc/munge.key")
  munged --force --key-file="$DIR/etc/munge.key" --socket="$RUN/munge.socket" --pid-file="$RUN/munged.pid" \
    --log-file="$LOG/munged.log" --seed-file="$DIR/etc/munge.seed" 2>"$LOG/munged.stderr" || die "munged: see $LOG"
  if [ "${ACCT:-0}" = 1 ]; then start_accounting; fi
  slurmctld 2>"$LOG/slurmctld.stderr" || die "slurmctld: see $LOG"
  slurmd -N n1
  slurmd -N n2
  wait_for 60 "the nodes are not idle" both_idle
}

both_idle() { [ "$(sinfo -h -N -p low -t idle -o %N | wc -l)" = 2 ]; }

# The database needs no passwords: it hears loopback alone, holds nothing but the test's jobs, and may write only below itself.
start_accounting() {
  local socket=$DIR/mysql/socket
  chown mysql "$DIR/mysql"
  (cd "$DIR/mysql" && exec setsid mariadbd --no-defaults --user=mysql --datadir="$DIR/mysql" --skip-grant-tables \
    --bind-address=127.0.0.1 --port=$((PORT + 2)) --socket="$socket" --pid-file="$DIR/mysql/pid" \
    --secure-file-priv="$DIR/mysql" --innodb-buffer-pool-size=64M </dev/null &>"$LOG/mariadbd.log") &
  wait_for 60 "no database" mariadb-admin --no-defaults --socket="$socket" ping
  ln -s "$DIR/mysql/pid" "$RUN/mariadbd.pid"
  (umask 077 && slurmdbd_conf >"$DIR/etc/slurmdbd.conf")
  slurmdbd 2>"$LOG/slurmdbd.stderr" || die "slurmdbd: see $LOG"
  wait_for 60 "no accounting" sacctmgr -n list cluster
  sacctmgr -i -Q add cluster pml >/dev/null
}

start_controller() {
  if ! runs slurmctld; then slurmctld 2>>"$LOG/slurmctld.stderr"; fi
  wait_for 60 "no controller" scontrol ping
}

stop() {
  if runs slurmd-n1 && runs slurmd-n2; then # a job outlives its slurmd: end the jobs while someone can
    start_controller && scancel --user="$(id -un)" && wait_for 60 "jobs that do not end" no_jobs || squeue || true
  fi
  for name in slurmd-n1 slurmd-n2 slurmctld slurmdbd mariadbd munged; do end $name; done
}

no_jobs() { [ -z "$(squeue -h)" ]; }

end() { # a daemon, kindly first
  if ! runs "$1"; then return; fi
  local pid
  pid=$(cat "$RUN/$1.pid")
  kill "$pid"
  if ! (wait_for 20 "$1 does not end" ended "$1"); then kill -9 "$pid" || true; fi
}

ended() { ! runs "$1"; }

runs() { # a pid file may be old and its number another's by now; a dead process may still be listed, without a command line
  local pid
  pid=$(cat "$RUN/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${1%-n?}" ] && grep -q . "/proc/$pid/cmdline"
}

wait_for() { # seconds, what to say after them, and a command that shall come true
  local end=$((SECONDS + $1)) complaint=$2
  shift 2
  until "$@" &>/dev/null; do
    if [ $SECONDS -ge $end ]; then die "$complaint: see $LOG"; fi
    sleep 0.1
  done
}

die() {
  echo "slurm.sh: $1" >&2
  exit 1
}

case "${1:-}" in
  install) install_packages ;;
  start) start ;;
  env) printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" ;;
  kill-ctld) end slurmctld ;;
  start-ctld) start_controller ;;
  stop) stop ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
