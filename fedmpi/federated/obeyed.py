"""All modules of the room with commands for workers: what is not imported is not obeyed."""

from fedmpi.federated import attacks as attacks
from fedmpi.federated import client_memory as client_memory
from fedmpi.federated import commands as commands
from fedmpi.federated import encrypting as encrypting
from fedmpi.federated import kept as kept
from fedmpi.federated import local_privacy as local_privacy
from fedmpi.federated import masking as masking
from fedmpi.federated import taking_over as taking_over
