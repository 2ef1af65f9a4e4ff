#!/usr/bin/env bash
# Installs what the tests run beside Go: as root through apt, else it says what
# to install.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin # Debian keeps servers there, not on everybody's path
missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }
need curl curl
need redis-server redis-server
need python3 python3
need fcgiwrap fcgiwrap
need chromium chromium
need patch patch
need node nodejs
need npm npm
need php php-cli
need jq jq
/usr/bin/python3 -c 'import jwt, cryptography' 2>/dev/null || missing+=(python3-jwt python3-cryptography)
need nginx nginx-light
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
compgen -G '/usr/sbin/php-fpm*' >/dev/null || missing+=(php-fpm)

peers() { # programs of others from npm, by their lock file
	cd "$(dirname "$0")/peers"
	if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
		npm ci --no-audit --no-fund --loglevel=error
	fi
}

if [ ${#missing[@]} -eq 0 ]; then
	peers
	exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "the tests need: ${missing[*]}" >&2
	echo "install them, for example: sudo apt-get install ${missing[*]}" >&2
	exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
peers
