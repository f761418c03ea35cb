/* Stands in for pyxis in tests: takes its srun options and gives the task a root of its own, by mount namespace and chroot.
 *
 *   required /path/pyxis_standin.so images=DIR          (plugstack.conf)
 *   gcc -shared -fPIC -o pyxis_standin.so pyxis_standin.c   (needs libslurm-dev)
 *
 * Image a/b:c is DIR/a+b+c; an absolute path is itself. A directory that holds a file named .host is the machine's own
 * root under a throw-away overlay: what a task writes outside its mounts is gone when it ends, as in an ephemeral
 * container. Shows that generated flags, mounts and paths agree; shows nothing about the real pyxis. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <slurm/spank.h>

SPANK_PLUGIN(pyxis, 1);

enum option { IMAGE = 1, MOUNTS, WORKDIR, IGNORED };

static char image[4096], mounts[16384], workdir[4096], images[3072];

static int take(int which, const char *value, int remote) {
  (void)remote;
  switch (which) {
  case IMAGE: snprintf(image, sizeof image, "%s", value); break;
  case MOUNTS: snprintf(mounts, sizeof mounts, "%s", value); break;
  case WORKDIR: snprintf(workdir, sizeof workdir, "%s", value); break;
  default: break;
  }
  return 0;
}

static struct spank_option options[] = {
  {"container-image", "IMAGE", "[stand-in] image", 1, IMAGE, take},
  {"container-mounts", "SRC:DST[:FLAGS][,...]", "[stand-in] bind mounts", 1, MOUNTS, take},
  {"container-workdir", "PATH", "[stand-in] working directory", 1, WORKDIR, take},
  {"container-name", "NAME", "[stand-in] ignored", 1, IGNORED, take},
  {"container-env", "NAME[,...]", "[stand-in] ignored", 1, IGNORED, take},
  {"container-mount-home", NULL, "[stand-in] ignored", 0, IGNORED, take},
  {"no-container-mount-home", NULL, "[stand-in] ignored", 0, IGNORED, take},
  {"container-remap-root", NULL, "[stand-in] ignored", 0, IGNORED, take},
  {"no-container-remap-root", NULL, "[stand-in] ignored", 0, IGNORED, take},
  {"container-writable", NULL, "[stand-in] ignored", 0, IGNORED, take},
  SPANK_OPTIONS_TABLE_END};

int slurm_spank_init(spank_t spank, int argc, char **argv) {
  for (int i = 0; i < argc; i++)
    if (!strncmp(argv[i], "images=", 7)) snprintf(images, sizeof images, "%s", argv[i] + 7);
  for (struct spank_option *o = options; o->name; o++)
    if (spank_option_register(spank, o) != ESPANK_SUCCESS) return -1;
  return 0;
}

static void make_parents(char *path) {
  for (char *slash = path + 1; (slash = strchr(slash, '/')); slash++) {
    *slash = 0;
    mkdir(path, 0755);
    *slash = '/';
  }
}

static int bind_into(const char *root, const char *source, const char *target, int read_only) {
  char path[8192];
  struct stat st;
  snprintf(path, sizeof path, "%s%s", root, target);
  if (stat(source, &st)) {
    slurm_error("pyxis: container start failed: mount %s: %s", source, strerror(errno));
    return -1;
  }
  make_parents(path);
  if (S_ISDIR(st.st_mode)) {
    mkdir(path, 0755);
  } else {
    int file = open(path, O_CREAT | O_WRONLY, 0644);
    if (file >= 0) close(file);
  }
  if (mount(source, path, NULL, MS_BIND | MS_REC, NULL)) {
    slurm_error("pyxis: cannot mount %s on %s: %s", source, path, strerror(errno));
    return -1;
  }
  return read_only ? mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) : 0;
}

/* The machine's root as the lower layer, a tmpfs as the upper one; root becomes the merged directory. */
static int overlay_host(char *root, size_t room) {
  char upper[3072], work[3072], merged[3072], data[8192];
  if (mount("tmpfs", root, "tmpfs", 0, NULL)) return -1;
  snprintf(upper, sizeof upper, "%.3000s/upper", root);
  snprintf(work, sizeof work, "%.3000s/work", root);
  snprintf(merged, sizeof merged, "%.3000s/merged", root);
  mkdir(upper, 0755);
  mkdir(work, 0755);
  mkdir(merged, 0755);
  snprintf(data, sizeof data, "lowerdir=/,upperdir=%s,workdir=%s", upper, work);
  if (mount("overlay", merged, "overlay", 0, data)) return -1;
  snprintf(root, room, "%s", merged);
  return 0;
}

int slurm_spank_task_init_privileged(spank_t spank, int argc, char **argv) {
  (void)argc, (void)argv;
  char root[4096], mark[4200], name[1024];
  struct stat st;
  if (!image[0]) return 0;
  if (image[0] == '/') {
    snprintf(root, sizeof root, "%s", image);
  } else {
    snprintf(name, sizeof name, "%.1000s", image);
    for (char *c = name; *c; c++)
      if (strchr("/:#", *c)) *c = '+';
    snprintf(root, sizeof root, "%s/%s", images, name);
  }
  if (stat(root, &st) || !S_ISDIR(st.st_mode)) {
    slurm_error("pyxis: failed to import docker image: %s (stand-in: no directory %s)", image, root);
    return -1;
  }
  snprintf(mark, sizeof mark, "%s/.host", root);
  int host = !access(mark, F_OK);
  if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) {
    slurm_error("pyxis: no mount namespace: %s", strerror(errno));
    return -1;
  }
  if (host && overlay_host(root, sizeof root)) {
    slurm_error("pyxis: no overlay on %s: %s", root, strerror(errno));
    return -1;
  }
  if (bind_into(root, "/proc", "/proc", 0) || bind_into(root, "/dev", "/dev", 0) || bind_into(root, "/sys", "/sys", 0)) return -1;
  char *rest = NULL;
  for (char *entry = strtok_r(mounts, ",", &rest); entry; entry = strtok_r(NULL, ",", &rest)) {
    char *target = strchr(entry, ':'), *flags = NULL;
    if (target) {
      *target++ = 0;
      if ((flags = strchr(target, ':'))) *flags++ = 0;
    } else {
      target = entry;
    }
    if (bind_into(root, entry, target, flags && !strcmp(flags, "ro"))) return -1;
  }
  if (chroot(root) || chdir("/")) {
    slurm_error("pyxis: cannot enter %s: %s", root, strerror(errno));
    return -1;
  }
  spank_setenv(spank, "PYXIS_STANDIN_IMAGE", image, 1);
  return 0;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv) {
  (void)spank, (void)argc, (void)argv;
  if (image[0] && chdir(workdir[0] ? workdir : "/")) {
    slurm_error("pyxis: cannot enter the working directory %s: %s", workdir, strerror(errno));
    return -1;
  }
  return 0;
}
