package login

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func TestTakeCookies(t *testing.T) {
	const ours = "__Host-caddy-auth-session-corp"
	for _, tc := range []struct {
		have, left []string
		ours       []Cookie
	}{
		{nil, nil, nil},
		{[]string{"a=b; c=d"}, []string{"a=b; c=d"}, nil},
		{[]string{ours + "=x"}, nil, []Cookie{{ours, "x"}}},
		{[]string{"a=b; " + ours + "=x;c=d"}, []string{"a=b; c=d"}, []Cookie{{ours, "x"}}},
		{[]string{"a=b", ours + "=x", "__Host-caddy-auth-state-corp-1=y; z=1"}, []string{"a=b", "z=1"}, []Cookie{{ours, "x"}, {"__Host-caddy-auth-state-corp-1", "y"}}},
		{[]string{" \t" + ours + " = x ; ;"}, nil, []Cookie{{ours, "x"}}},
		{[]string{ours}, nil, []Cookie{{ours, ""}}},
		{[]string{"a=" + ours + "=x"}, []string{"a=" + ours + "=x"}, nil},
	} {
		h := http.Header{"Cookie": tc.have}
		if got := TakeCookies(h); !slices.Equal(got, tc.ours) || !slices.Equal(h["Cookie"], tc.left) {
			t.Errorf("%q: %q, left %q", tc.have, got, h["Cookie"])
		}
	}
	h := http.Header{"Cookie": {"a=b"}}
	if n := testing.AllocsPerRun(100, func() { TakeCookies(h) }); n != 0 {
		t.Errorf("%v allocations where there are none of ours", n)
	}
}

func TestGuardCookies(t *testing.T) {
	h := http.Header{"Set-Cookie": {"__Host-caddy-auth-session-corp=x; Path=/", "a=b", " __HOST-Caddy-Auth-State-x=1", "=__Host-caddy-auth-session-corp=x", "c=__Host-caddy-auth-"}}
	own := SetCookie(SessionCookie("corp"), "ours", 0)
	h.Add("Set-Cookie", own)
	GuardCookies(h, []string{own})
	if got := h["Set-Cookie"]; !slices.Equal(got, []string{"a=b", "c=__Host-caddy-auth-", own}) {
		t.Errorf("%q", got)
	}
}

func TestNavigates(t *testing.T) {
	for _, tc := range []struct {
		method, headers string
		navigates       bool
		shows           bool
	}{
		{"GET", "Sec-Fetch-Mode: navigate|Sec-Fetch-Dest: document", true, true},
		{"HEAD", "Sec-Fetch-Mode: navigate|Sec-Fetch-Dest: document", true, true},
		{"POST", "Sec-Fetch-Mode: navigate|Sec-Fetch-Dest: document", false, true},
		{"GET", "Sec-Fetch-Mode: navigate|Sec-Fetch-Dest: iframe|Accept: text/html", false, false},
		{"GET", "Sec-Fetch-Mode: cors|Sec-Fetch-Dest: empty|Accept: text/html", false, false},
		{"GET", "Accept: text/html,*/*;q=0.8", true, true},
		{"GET", "Accept: application/xhtml+xml", true, true},
		{"GET", "Accept: */*", false, false},
		{"GET", "Accept: application/json, text/html;q=0", false, false},
		{"GET", "", false, false},
		{"GET", "Accept: text/html|X-Requested-With: XMLHttpRequest", false, false},
		{"GET", "Accept: text/html|Upgrade: websocket", false, false},
		{"DELETE", "Accept: text/html", false, true},
	} {
		r := httptest.NewRequest(tc.method, "/", nil)
		for line := range strings.SplitSeq(tc.headers, "|") {
			if name, value, ok := strings.Cut(line, ": "); ok {
				r.Header.Set(name, value)
			}
		}
		if Navigates(r) != tc.navigates || ShowsPages(r) != tc.shows {
			t.Errorf("%s %s: %v %v", tc.method, tc.headers, Navigates(r), ShowsPages(r))
		}
	}
}
