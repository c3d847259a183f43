"""The tests of FedMPI; they mirror the rooms of the package."""
