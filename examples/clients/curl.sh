#!/usr/bin/env bash
# A client of an API behind the gateway, with curl and jq. It does what lines on
# standard input say: "call" calls the API, "revoke" ends the token.
#
#   ISSUER=https://api.example.com API_URL=https://api.example.com/orders CLIENT_ID=client_… CLIENT_SECRET=ca_cs_… ./curl.sh
set -uo pipefail

token='' until=0

# Secrets go through a file that is read, not through arguments, which others can see.
as_client() { curl -s --config <(printf 'user = "%s:%s"\n' "$CLIENT_ID" "$CLIENT_SECRET") "$@"; }
with_token() { curl -s --config <(printf 'header = "Authorization: Bearer %s"\n' "$token") "$@"; }

fresh() {
	[ "$(date +%s)" -lt "$until" ] && return
	local answer
	answer=$(as_client --data grant_type=client_credentials "$ISSUER/oauth/token") || return
	if ! token=$(jq -er .access_token <<<"$answer"); then
		until=0
		jq -c '{error: .error}' <<<"$answer"
		return 1
	fi
	until=$(($(date +%s) + $(jq -r .expires_in <<<"$answer") - 5))
}

call() {
	local tries status
	for tries in 1 2; do
		fresh || return
		status=$(with_token -o /dev/null -w '%{http_code}' "$API_URL")
		[ "$status" != 401 ] && break
		until=0 # it was ended early: get another, once
	done
	echo "{\"status\":$status,\"tries\":$tries}"
}

revoke() {
	fresh || return
	echo "{\"status\":$(as_client -o /dev/null -w '%{http_code}' --data-urlencode "token@"<(printf %s "$token") "$ISSUER/oauth/revoke")}"
}

while read -r line; do
	case $line in
	call) call ;;
	revoke) revoke ;;
	esac
done
