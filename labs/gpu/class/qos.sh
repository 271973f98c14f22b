#!/bin/sh
# Accounts and limits of a class: sh labs/gpu/class/qos.sh STUDENT…      (as an administrator of Slurm; again for more)
#
#   class  the runs: one at a time a student, 30 minutes each
#   test   to try a script: 5 minutes, before all others, one at a time in the whole class
#
# Students have to be users of the machine. They ask for the second with `sbatch --qos=test`.
set -eu
[ $# -gt 0 ] || { echo "qos.sh: name the students: sh qos.sh anna ben …" >&2; exit 2; }
cluster=$(scontrol show config | sed -n 's/^ClusterName *= //p')
quiet() { # what is there already is no mistake
  sacctmgr --immediate "$@" || [ $? = 1 ]
}
quiet add cluster "$cluster"
quiet add qos class set Flags=DenyOnLimit MaxJobsPerUser=1 MaxSubmitJobsPerUser=4 MaxTRESPerJob=gres/gpu=1 MaxWall=00:30:00
quiet add qos test set Flags=DenyOnLimit Priority=10 GrpJobs=1 MaxSubmitJobsPerUser=1 MaxTRESPerJob=gres/gpu=1 MaxWall=00:05:00
quiet add account class Description=class Organization=class
for student; do
  quiet add user "$student" Account=class DefaultAccount=class QOS=class,test DefaultQOS=class
done
sacctmgr show assoc account=class format=User,QOS,DefaultQOS
