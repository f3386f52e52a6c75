"""Two small trained networks and their tasks, for trying things out on something real."""

NETWORKS = {
    "language": "mpsearch.demo.language:task",
    "digits": "mpsearch.demo.digits:task",
}
