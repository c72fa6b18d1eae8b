# shellcheck shell=bash disable=SC2034
# The settings of the scripts in this directory. A setting is taken from, first match first:
#   a flag (--zone=us-west4-a), an environment variable (ACTFER_ZONE=us-west4-a), this file.
# To change a default, write it between :- and }; the words behind # are what the scripts say about a setting.

# The TPU
project="${ACTFER_PROJECT:-}"                       # the Google Cloud project; gcloud config get project prints yours
zone="${ACTFER_ZONE:-}"                             # a zone that has the accelerator, for example us-west4-a
tpu_name="${ACTFER_TPU_NAME:-actfer}"               # name of the queued resource and of its TPU
accelerator_type="${ACTFER_ACCELERATOR_TYPE:-}"     # kind and size of the TPU, for example v5litepod-16
runtime_version="${ACTFER_RUNTIME_VERSION:-}"       # image of the workers; empty for the one that goes with the accelerator
capacity="${ACTFER_CAPACITY:-spot}"                 # spot, reserved or on_demand
service_account="${ACTFER_SERVICE_ACCOUNT:-}"       # e-mail of the account that the workers act as; empty for the default one
network="${ACTFER_NETWORK:-}"                       # network of the workers; empty for the default one
subnetwork="${ACTFER_SUBNETWORK:-}"                 # subnetwork of the workers; empty for the default one
ssh_user="${ACTFER_SSH_USER:-}"                     # user name on the workers; empty for the one that gcloud takes
valid_until_duration="${ACTFER_VALID_UNTIL_DURATION:-}"  # how long a request may wait, for example 6h; empty for no limit

# The run
config="${ACTFER_CONFIG:-configs/ucgrpo.py}"        # config file of the training, in this checkout
workdir="${ACTFER_WORKDIR:-}"                       # directory of the run, in a bucket of the zone's region: gs://BUCKET/RUN
training_arguments=()                               # further arguments of actfer_jax.train; those after -- take their place

# What the scripts wait for
gcloud_seconds="${ACTFER_GCLOUD_SECONDS:-600}"      # what gcloud gets to answer, beyond the seconds below, before it is ended
setup_seconds="${ACTFER_SETUP_SECONDS:-1800}"       # what the installation on the workers gets
wait="${ACTFER_WAIT:-true}"                         # true: create.sh returns when the TPU is ready; false: when it is asked for
poll_seconds="${ACTFER_POLL_SECONDS:-60}"           # between two looks at a state
launch_seconds="${ACTFER_LAUNCH_SECONDS:-30}"       # how long launch.sh looks out for a training that fails at once
stop_seconds="${ACTFER_STOP_SECONDS:-300}"          # what a training gets to save its state before it is killed

# watch.sh: what it does, and the guard against cost
relaunch="${ACTFER_RELAUNCH:-true}"                 # true: create, set up and launch as needed; false: only guard
max_hours="${ACTFER_MAX_HOURS:-0}"                  # the TPU is deleted when it was active for this long; 0 for no limit
idle_minutes="${ACTFER_IDLE_MINUTES:-30}"           # the TPU is deleted when nothing has trained for this long; 0 for never
hang_minutes="${ACTFER_HANG_MINUTES:-60}"           # a training of which nothing was heard for this long is idle; 0: never
delete_when_finished="${ACTFER_DELETE_WHEN_FINISHED:-true}"  # true: the TPU is deleted when the run has finished

# logs.sh, tensorboard.sh
worker="${ACTFER_WORKER:-0}"                        # number of a worker, or all
lines="${ACTFER_LINES:-50}"                         # how many lines of a log
follow="${ACTFER_FOLLOW:-false}"                    # true: go on showing what is added to the log
tensorboard_on="${ACTFER_TENSORBOARD_ON:-}"         # here or worker; empty: here for gs://, on worker 0 for other paths
tensorboard_port="${ACTFER_TENSORBOARD_PORT:-6006}"  # port of TensorBoard on this machine

dry_run="${ACTFER_DRY_RUN:-false}"                  # true: print the commands and run none (--dry_run)
