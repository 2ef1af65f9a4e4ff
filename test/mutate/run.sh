#!/usr/bin/env bash
# Breaks the revocation protocol, and what attackers tried, in one line at a time
# and checks that a test notices. Each *.patch is one such line: its first line says
# what it breaks, and a second one, "tests: ", which tests must notice; without it
# those of the protocol.
# Usage: run.sh [name...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
{ git ls-files -z --cached --others --exclude-standard | tar -c --null -T - --ignore-failed-read 2>/dev/null || true; } | tar -x -C "$work"
cd "$work"
protocol="./internal/feed ./internal/cache ./internal/verifier ./internal/manage ./internal/stream ./test/machine"
export CADDY_AUTH_MACHINE_CHECKS=${CADDY_AUTH_MACHINE_CHECKS:-600}
if ! out=$(go test -count=1 $protocol ./internal/store/... 2>&1); then
	tail -n 30 <<<"$out"
	echo "the tests fail without any sabotage"
	exit 1
fi
survivors=0
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
	for p in "$here"/*.patch; do names+=("$(basename "$p" .patch)"); done
fi
n=0
for name in "${names[@]}"; do
	n=$((n + 1))
	patch="$here/$name.patch"
	why=$(head -n 1 "$patch")
	packages=$protocol
	if grep -q '^+++ b/internal/store/' "$patch"; then packages="./internal/store/... ./internal/verifier"; fi
	tests=$(sed -n 's/^tests: //p' "$patch" | head -n 1)
	if [ -n "$tests" ]; then packages=${tests%% *}; fi
	patch -s -p1 <"$patch"
	if ! go vet $packages >"$work/vet.log" 2>&1; then
		echo "[$n/${#names[@]}] $name: does not compile"
		cat "$work/vet.log"
		survivors=$((survivors + 1))
	elif out=$(go test -count=1 -failfast -timeout 300s ${tests:-$packages} 2>&1); then
		echo "[$n/${#names[@]}] $name: SURVIVED ($why)"
		survivors=$((survivors + 1))
	else
		caught=$(grep -oE -- '--- FAIL: [A-Za-z0-9_/]+' <<<"$out" | awk '{print $3}' | sort -u | head -n 4 | tr '\n' ' ' || true)
		if [ -z "$caught" ]; then
			echo "[$n/${#names[@]}] $name: no test failed, but something did:"
			tail -n 20 <<<"$out"
			survivors=$((survivors + 1))
		else
			echo "[$n/${#names[@]}] $name: caught by $caught($why)"
		fi
	fi
	patch -s -R -p1 <"$patch"
done
if [ "$survivors" -gt 0 ]; then
	echo "$survivors of ${#names[@]} were not caught"
	exit 1
fi
echo "all ${#names[@]} were caught"
