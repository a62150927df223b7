#!/bin/sh
# Installs fieldpost from the folder that this file is in. `--help` explains.
set -eu
# @shared basics@
# @shared make-user@
# @shared remove-data@
# @shared start-agents@
# @shared stop-agents@
# Filled in by `build`: what `uname -m` says on the machines that this binary runs on.
machines='@machines@'

here=$(cd "$(dirname "$0")" && pwd)
prefix=/usr/local purge=''
units=/etc/systemd/system

usage() {
  cat <<HELP
install.sh: fieldpost without a package manager.

  ./install.sh [--prefix DIR]      install, or replace an older version; the configuration and the buffer are kept
  ./install.sh --uninstall         stop and remove it; the configuration, the buffer and the user stay
  ./install.sh --uninstall --purge remove these, too

What is installed:
  DIR/bin/fieldpost, DIR/share                    the program, documents, manual, completions; DIR is /usr/local
  /etc/fieldpost/fieldpost.toml                   if it is not there
  $units/fieldpost*          the units, where systemd is
  /etc/sysusers.d, /etc/tmpfiles.d                fieldpost.conf, where systemd is
  the user fieldpost, /var/lib/fieldpost          the buffer

Needs root; nothing is fetched. Exit codes: 0 done, 1 failed, 64 wrong usage, 69 not for this machine.
HELP
}
fail() { # CODE TEXT...
  code=$1
  shift
  say "$@"
  exit "$code"
}

check_machine() {
  id -u fieldpost >/dev/null 2>&1 || command -v useradd >/dev/null ||
    fail 69 'there is no useradd here: make a system user and a group fieldpost, with /var/lib/fieldpost as its home, first'
  machine=$(uname -m)
  case " $machines " in
    *" $machine "*) ;;
    *) fail 69 "this is for $machines, and the machine is $machine: take its archive" ;;
  esac
  (cd "$here" && sha256sum -c SHA256SUMS >/dev/null 2>&1) ||
    fail 1 'a file is not as SHA256SUMS says: the archive is damaged, fetch it again'
  "$here/fieldpost" --version >/dev/null 2>&1 || fail 69 'the binary does not run on this machine'
}

# Renamed over the old one, which may be running.
put() { # MODE FILE TARGET
  mkdir -p "${3%/*}"
  cp "$2" "$3.new"
  chmod "$1" "$3.new"
  mv "$3.new" "$3"
}
put_unit() { # NAME: with the path of the binary
  mkdir -p "$units"
  sed "s#/usr/bin/fieldpost#$prefix/bin/fieldpost#" "$here/systemd/$1" >"$units/$1.new"
  chmod 644 "$units/$1.new"
  mv "$units/$1.new" "$units/$1"
}

remove_share() {
  rm -rf "$prefix/share/doc/fieldpost"
  rm -f "$prefix"/share/man/man1/fieldpost.1.gz "$prefix"/share/man/man1/fieldpost-*.1.gz \
    "$prefix/share/bash-completion/completions/fieldpost" "$prefix/share/zsh/site-functions/_fieldpost" \
    "$prefix/share/fish/vendor_completions.d/fieldpost.fish"
}

install_all() {
  check_machine
  make_user
  make_data_folder
  binary=$prefix/bin/fieldpost
  put 755 "$here/fieldpost" "$binary"
  remove_share
  mkdir -p "$prefix/share/doc"
  cp -R "$here/doc" "$prefix/share/doc/fieldpost"
  for page in "$here"/man/*; do put 644 "$page" "$prefix/share/man/man1/${page##*/}"; done
  put 644 "$here/completions/fieldpost" "$prefix/share/bash-completion/completions/fieldpost"
  put 644 "$here/completions/_fieldpost" "$prefix/share/zsh/site-functions/_fieldpost"
  put 644 "$here/completions/fieldpost.fish" "$prefix/share/fish/vendor_completions.d/fieldpost.fish"
  mkdir -p /etc/fieldpost
  if [ ! -e "$config" ]; then
    put 640 "$here/fieldpost.toml" "$config"
    chgrp fieldpost "$config"
  fi
  if ! command -v systemctl >/dev/null; then
    say "installed. There is no systemd here; have your supervisor keep this running, as the user fieldpost:"
    say "  $binary run --config $config"
    say "It stops in its order at SIGTERM. /run/fieldpost, for the socket, must be its own: "
    say '  mkdir -p /run/fieldpost && chown fieldpost: /run/fieldpost'
    return
  fi
  first=yes
  if [ -e "$units/fieldpost.service" ]; then first=''; fi
  for unit in fieldpost.service fieldpost.socket fieldpost@.service fieldpost@.socket; do put_unit "$unit"; done
  put 644 "$here/systemd/sysusers.conf" /etc/sysusers.d/fieldpost.conf
  put 644 "$here/systemd/tmpfiles.conf" /etc/tmpfiles.d/fieldpost.conf
  systemd-tmpfiles --create fieldpost.conf || true
  if [ -n "$first" ]; then systemctl --no-reload --quiet enable fieldpost.socket fieldpost.service; fi
  say "$("$binary" --version) is installed"
  start_agents systemctl
}

uninstall() {
  stop_agents systemctl
  if command -v systemctl >/dev/null; then
    systemctl --no-reload --quiet disable fieldpost.socket fieldpost.service 2>/dev/null || true
  fi
  for unit in fieldpost.service fieldpost.socket fieldpost@.service fieldpost@.socket; do rm -f "$units/$unit"; done
  rm -f /etc/sysusers.d/fieldpost.conf /etc/tmpfiles.d/fieldpost.conf "$prefix/bin/fieldpost"
  remove_share
  if systemd_is_up; then systemctl daemon-reload || true; fi
  if [ -n "$purge" ]; then
    remove_data
    remove_user
  else
    say "removed. $config and /var/lib/fieldpost are left; --uninstall --purge removes them"
  fi
}

action=install_all
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --prefix)
      [ $# -ge 2 ] || fail 64 '--prefix wants a folder (--help explains)'
      prefix=$2
      shift
      ;;
    --prefix=*) prefix=${1#*=} ;;
    --uninstall) action=uninstall ;;
    --purge) purge=yes ;;
    *) fail 64 "there is no option '$1' (--help explains)" ;;
  esac
  shift
done
case $prefix in
  /home/* | /root/*) fail 64 "--prefix: the service sees nothing of $prefix (ProtectHome=)" ;;
  /*) ;;
  *) fail 64 "--prefix wants an absolute folder, not '$prefix'" ;;
esac
if [ -n "$purge" ] && [ "$action" != uninstall ]; then fail 64 '--purge goes with --uninstall'; fi
[ "$(id -u)" = 0 ] || fail 1 'needs root: sudo ./install.sh'
for unit in /usr/lib/systemd/system/fieldpost.service /lib/systemd/system/fieldpost.service; do
  [ ! -e "$unit" ] || fail 1 "fieldpost is here as a package ($unit): remove that first, or upgrade it"
done
$action
