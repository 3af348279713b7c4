"""The base images, for an engine that cannot pull them.

`Bases.get(name)` answers with the pinned image where the engine has it or can pull it. Elsewhere it builds a stand-in
from Debian's packages (and, for the builder, from this machine's Rust toolchain) that behaves as the image does in
what our files rely on: its users, its paths, its libraries. Package settings and certificates of this machine go into
the stand-ins for build stages, and never into the shipped Dockerfiles. A stand-in's tag is a checksum of what it was
made from, so that a kept one is found again. Nothing is installed on this machine: debootstrap comes out of its package
into .tools/.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import engine
from claims import Failed

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITE = "bookworm"
# Where build stages find this machine's certificates; the packages of an image overwrite the usual place.
CERTIFICATES = "/usr/local/share/standin/ca.crt"
CERTIFICATE_VARIABLES = ("CARGO_HTTP_CAINFO", "PIP_CERT", "SSL_CERT_FILE")

DISTROLESS = """
FROM @debian@ AS files
RUN mkdir /packages /image && cd /packages \\
    && apt-get update \\
    && apt-get download base-files ca-certificates libc6 libgcc-s1 libgomp1 libssl3 libstdc++6 netbase tzdata \\
    && for package in *.deb; do dpkg-deb --extract "$package" /image; done \\
    && mkdir -p /image/home/nonroot /image/etc/ssl/certs && chown 65532:65532 /image/home/nonroot \\
    && find /image/usr/share/ca-certificates -name '*.crt' -exec cat {} + > /image/etc/ssl/certs/ca-certificates.crt \\
    && printf 'root:x:0:0:root:/root:/sbin/nologin\\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\\n' > /image/etc/passwd \\
    && printf 'root:x:0:\\nnobody:x:65534:\\nnonroot:x:65532:\\n' > /image/etc/group \\
    && rm -rf /image/usr/share/man /image/usr/share/locale /image/usr/share/lintian
FROM scratch
COPY --from=files /image/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532
WORKDIR /home/nonroot
"""

RUST = """
FROM @debian@
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev \\
    && rm -rf /var/lib/apt/lists/*
COPY toolchain /usr/local
ENV CARGO_HOME=/usr/local/cargo
"""

PROMETHEUS = """
FROM @debian@
RUN apt-get update && apt-get install --yes --no-install-recommends busybox prometheus \\
    && rm -rf /var/lib/apt/lists/* \\
    && ln -s /usr/bin/prometheus /usr/bin/promtool /bin/ 2>/dev/null; ln -s busybox /bin/wget \\
    && mkdir -p /prometheus && chown 65534:65534 /prometheus && prometheus --version
USER 65534
WORKDIR /prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


class Missing(Exception):
    """A base image can neither be pulled nor be replaced on this machine."""


def run(*command, **options):
    """Runs a command; its output appears only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        raise Missing(f"'{' '.join(command[:4])} …' failed:\n{done.stdout[-3000:]}")
    return done.stdout


def succeeds(*command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def can_be_had(reference):
    """Whether the engine has the image or can pull it."""
    if succeeds("docker", "image", "inspect", reference):
        return True
    engine.LEFT.note(reference)
    return succeeds("docker", "pull", "--quiet", reference)


class Bases:
    """The base images by name, each looked for once."""

    def __init__(self):
        self.standins = []

    def get(self, name, reference):
        """The image to use for `reference`: itself, or the stand-in called `name`."""
        if can_be_had(reference):
            return reference
        tag = getattr(self, f"_{name}")()
        self.standins.append((name, reference))
        print(f"  {reference.split('@')[0]} cannot be pulled here; its stand-in is {tag}", flush=True)
        return tag

    def _debian(self):
        sources = self._sources()
        tag = self._tag("debian", sources)
        if self._exists(tag):
            return tag
        debootstrap, environment = self._debootstrap()
        engine.LEFT.note(tag)
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder, "root")
            mirror = sources.split()[1]
            run(debootstrap, "--variant=minbase", SUITE, str(root), mirror, env=environment)
            (root / "etc/apt/sources.list").write_text(sources)
            for path in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt"):
                shutil.rmtree(root / path, ignore_errors=True)
            (root / "var/cache/apt/archives/partial").mkdir(parents=True)
            (root / "var/lib/apt/lists/partial").mkdir(parents=True)
            changes = ["--change", "CMD bash"]
            bundle = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
            if bundle.exists():
                copy = root / CERTIFICATES.lstrip("/")
                copy.parent.mkdir(parents=True)
                shutil.copy(bundle, copy)
                for variable in CERTIFICATE_VARIABLES:
                    changes += ["--change", f"ENV {variable}={CERTIFICATES}"]
            if pathlib.Path("/etc/pip.conf").exists():
                shutil.copy("/etc/pip.conf", root / "etc/pip.conf")
            for variable, value in os.environ.items():
                if re.fullmatch(r"PIP_(EXTRA_)?INDEX_URL|(https?|no)_proxy|(HTTPS?|NO)_PROXY", variable):
                    changes += ["--change", f"ENV {variable}={value}"]
            archive = pathlib.Path(folder, "root.tar")
            run("tar", "-C", str(root), "-cf", str(archive), ".")
            run("docker", "import", *changes, str(archive), tag)
        return tag

    def _runtime(self):
        return self._built("runtime", DISTROLESS)

    def _prometheus(self):
        return self._built("prometheus", PROMETHEUS)

    def _rust(self):
        version = run("rustc", "--version", cwd=ROOT)

        def toolchain(folder):
            sysroot = pathlib.Path(run("rustc", "--print", "sysroot", cwd=ROOT).strip())
            copy = folder / "toolchain"
            (copy / "bin").mkdir(parents=True)
            for program in ("cargo", "rustc"):
                shutil.copy(sysroot / "bin" / program, copy / "bin" / program)
            shutil.copytree(sysroot / "lib", copy / "lib", symlinks=True)
            settings = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"), "config.toml")
            if settings.exists():
                (copy / "cargo").mkdir()
                shutil.copy(settings, copy / "cargo/config.toml")

        return self._built("rust", RUST, toolchain, version)

    def _built(self, name, dockerfile, prepare=None, extra=""):
        debian = self._debian()
        tag = self._tag(name, dockerfile + debian + extra)
        if not self._exists(tag):
            with tempfile.TemporaryDirectory() as folder:
                if prepare is not None:
                    prepare(pathlib.Path(folder))
                pathlib.Path(folder, "Dockerfile").write_text(dockerfile.replace("@debian@", debian))
                try:
                    engine.build(folder, "--tag", tag)
                except Failed as failure:
                    raise Missing(f"the stand-in {tag} could not be built:\n{str(failure)[-3000:]}") from failure
        return tag

    @staticmethod
    def _tag(name, made_from):
        return f"model-serving-standin/{name}:{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"

    @staticmethod
    def _exists(tag):
        return succeeds("docker", "image", "inspect", tag)

    @staticmethod
    def _sources():
        """This machine's own sources for the suite, so that its mirror is used and no host is named here."""
        wanted = "only a Debian machine with the suite's sources can build stand-ins; pull the images instead"
        if shutil.which("apt-get") is None:
            raise Missing(wanted)
        targets = run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Identifier: Packages")
        lines = []
        for line in sorted(set(targets.splitlines())):
            site, release = line.split()
            if release in (SUITE, f"{SUITE}-updates", f"{SUITE}-security"):
                lines.append(f"deb {site} {release} main\n")
        if not lines:
            raise Missing(wanted)
        return "".join(lines)

    @staticmethod
    def _debootstrap():
        """The program and its environment: this machine's own, or out of the distribution's package, not installed."""
        installed = shutil.which("debootstrap")
        if os.geteuid() != 0:
            raise Missing("only root can build stand-ins; run this as root, or pull the images")
        if installed:
            return installed, None
        target = ROOT / ".tools/debootstrap"
        program = target / "usr/sbin/debootstrap"
        if not program.exists():
            target.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                if not succeeds("apt-cache", "show", "debootstrap"):
                    run("apt-get", "update", "-qq")
                run("apt-get", "download", "-qq", "debootstrap", cwd=folder)
                (package,) = pathlib.Path(folder).glob("debootstrap_*.deb")
                run("dpkg-deb", "--extract", str(package), f"{folder}/files")
                shutil.rmtree(target, ignore_errors=True)
                pathlib.Path(folder, "files").rename(target)
        return str(program), {**os.environ, "DEBOOTSTRAP_DIR": str(target / "usr/share/debootstrap")}
