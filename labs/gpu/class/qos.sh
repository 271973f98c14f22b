#!/bin/sh
# Accounts and limits of a class: sh labs/gpu/class/qos.sh STUDENT…      (as an administrator of Slurm; again for more)
#
# A student has one running job, and three more that may wait, whatever the QOS:
#   class  the runs: one card, 30 minutes
#   test   to try a script: one card, 5 minutes, before all others, one at a time in the whole class
#
# Students have to be users of the machine. They ask for the second with `sbatch --qos=test`.
set -eu
[ $# -gt 0 ] || { echo "qos.sh: name the students: sh qos.sh anna ben …" >&2; exit 2; }
cluster=$(scontrol show config | sed -n 's/^ClusterName *= //p')
[ -n "$cluster" ] || { echo "qos.sh: Slurm does not answer: does slurmctld run?" >&2; exit 1; }

sure() { # add what is not there yet: a kind and a name, then what it begins with
  [ -n "$(sacctmgr -n -P show "$1" "$2")" ] || sacctmgr -i add "$@"
}
sure cluster "$cluster"
sure qos class
sure qos test
sure account class Description=class Organization=class
sacctmgr -i modify qos class set Flags=DenyOnLimit MaxTRESPerJob=gres/gpu=1 MaxWall=00:30:00
sacctmgr -i modify qos test set Flags=DenyOnLimit MaxTRESPerJob=gres/gpu=1 MaxWall=00:05:00 GrpJobs=1 Priority=10
for student; do
  sure user "$student" Account=class DefaultAccount=class
  sacctmgr -i modify user "$student" where Account=class set QOS=class,test DefaultQOS=class MaxJobs=1 MaxSubmitJobs=4
done
sacctmgr show assoc account=class format=User,QOS,DefaultQOS,MaxJobs,MaxSubmit
