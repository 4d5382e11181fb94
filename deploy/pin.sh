#!/bin/sh
# pin.sh [IMAGE...]: writes, on stdout, the images of docker-compose.yml by the digests that their tags have today.
#   deploy/pin.sh >deploy/images.env
#   docker compose --env-file deploy/images.env --profile federate up
# Run it again to renew them; compare the two files before you use the new one. Needs docker (buildx) or skopeo.
set -eu
compose=$(dirname "$0")/../docker-compose.yml

digest() { # the digest of an image's tag, for all platforms
  if command -v docker >/dev/null 2>&1; then
    docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}'
  else
    skopeo inspect --format '{{.Digest}}' "docker://$1"
  fi
}

# Lines such as "  image: ${PROMETHEUS_IMAGE:-prom/prometheus:v3.5.0}"; fedloom's own image is built here, from BASE_IMAGE.
sed -n 's/.*\${\([A-Z]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' "$compose" | while read -r variable image; do
  [ "$variable" = FEDLOOM_IMAGE ] && continue
  if [ $# -gt 0 ] && ! printf '%s\n' "$@" | grep -qx "$variable"; then continue; fi
  found=$(digest "$image")
  case $found in
    sha256:????????????????????????????????????????????????????????????????) ;;
    *) echo "pin.sh: $image: expected a digest, got '$found'" >&2; exit 1 ;;
  esac
  printf '# %s\n%s=%s@%s\n' "$image" "$variable" "${image%:*}" "$found"
done
