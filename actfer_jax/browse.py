"""Shows the episodes of whole runs in a browser (docs/browse.md).

    python -m actfer_jax.browse runs/ucgrpo
    python -m actfer_jax.browse runs/before runs/after --out=runs/page

A WORKDIR is that of a training, or the directory that `evaluate` wrote. Without `--out`, the page is served to this
machine alone until Ctrl-C; with it, it is written as files that need neither a server nor a network.
"""

from absl import flags

from actfer_jax import cli
from actfer_jax.errors import UserError
from actfer_jax.files import as_path


def main(argv: list[str]) -> None:
    from actfer_jax.viewer.server import LOOPBACK, make_server
    from actfer_jax.viewer.site import PAGE, Site
    from actfer_jax.viewer.static import write

    given = flags.FLAGS
    if len(argv) < 2:
        raise UserError("give at least one workdir: python -m actfer_jax.browse WORKDIR [WORKDIR ...]")
    try:
        workdirs = [as_path(workdir) for workdir in argv[1:]]
    except ValueError as error:
        raise UserError(f"a workdir {error}") from error
    site = Site(workdirs)
    if given.out is not None:
        write(site, given.out)
        print(f"open {given.out / PAGE} in a browser")
        return
    with make_server(site, given.port) as server:
        print(f"http://{LOOPBACK}:{server.server_port}/ shows the episodes; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "out", None, "Directory to write the page to, instead of serving it.")
    flags.DEFINE_integer("port", 6007, "Port of the server; 0 for a free one.", lower_bound=0, upper_bound=65535)
    cli.run(main, arguments=True)
