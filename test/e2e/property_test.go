package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestPropertyUpstreamSeesTheOwner sends random requests, honest and hostile,
// while keys come and go: the upstream never sees an identity other than the
// credential's owner's, and never one without a credential.
func TestPropertyUpstreamSeesTheOwner(t *testing.T) {
	requests := 20_000
	if os.Getenv("CADDY_AUTH_SOAK") != "" {
		requests = 1_000_000
	}
	g := start(t, options{site: "auth {\npublic /open /open/*\n}", auth: "cache {\nsize 64\n}"})
	keys := map[string]string{} // text -> owner
	var texts []string
	for i := range 40 {
		owner := fmt.Sprintf("owner-%d", i)
		k := g.key(manage.KeySpec{Owner: owner})
		keys[k.Text.Reveal()] = owner
		texts = append(texts, k.Text.Reveal())
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	m := g.manager()
	churn.Go(func() { // owners are disabled and enabled all the time
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := m.SetOwnerDisabled(context.Background(), fmt.Sprintf("owner-%d", i/2%40), i%2 == 0, ""); err != nil {
				t.Error(err)
			}
		}
	})
	var workers sync.WaitGroup
	const connections = 8
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d requests", seed, requests)
	allowed := make([]int, connections)
	for w := range connections {
		workers.Go(func() {
			allowed[w] = g.randomRequests(t, rand.New(rand.NewPCG(seed, uint64(w))), requests/connections, texts, keys)
		})
	}
	workers.Wait()
	close(stop)
	churn.Wait()
	total := 0
	for _, n := range allowed {
		total += n
	}
	if total < requests/20 {
		t.Errorf("only %d of %d requests passed: the test shows little", total, requests)
	}
}

// randomRequests sends n requests over one connection after another and checks
// each answer; it returns how many passed with an identity.
func (g *gateway) randomRequests(t *testing.T, r *rand.Rand, n int, texts []string, keys map[string]string) int {
	var conn net.Conn
	var br *bufio.Reader
	passed := 0
	for range n {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", g.addr); err != nil {
				t.Error(err)
				return passed
			}
			br = bufio.NewReader(conn)
		}
		text, credentials := randomRequest(r, g.addr, texts)
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Error(err)
			return passed
		}
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			return passed
		}
		a := readAnswer(t, res)
		if a.Status == 200 {
			owner := ""
			credentials = slices.DeleteFunc(credentials, func(c string) bool { return c == "" }) // an empty header is none
			if len(credentials) == 1 {
				owner = keys[credentials[0]]
			}
			if !checkSeen(t, text, a.Body, owner, strings.HasPrefix(text, "GET /open")) {
				return passed
			}
			if owner != "" {
				passed++
			}
		}
		if res.Close || r.IntN(50) == 0 {
			_ = conn.Close()
			conn = nil
		}
	}
	return passed
}

// checkSeen compares what the upstream saw with what it may see.
func checkSeen(t *testing.T, request, body, owner string, public bool) bool {
	s, err := parseSeen(body)
	if err != nil {
		t.Errorf("%q: %v", request, err)
		return false
	}
	id := identityOf(s.Header)
	switch got := id["x_auth_subject"]; {
	case public && len(id) == 0:
		return true
	case !public && owner != "" && len(got) == 1 && got[0] == owner && len(id) == 4:
		return true
	}
	t.Errorf("request %q: the upstream saw %v, the credential's owner is %q", request, id, owner)
	return false
}

func randomRequest(r *rand.Rand, addr string, texts []string) (text string, credentials []string) {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	var lines []string
	for range r.IntN(3) {
		key := texts[r.IntN(len(texts))]
		switch r.IntN(5) {
		case 0:
			key = key[:len(key)-1] + pick("0", "1", "z")
		case 1:
			key = key[:r.IntN(len(key))]
		}
		credentials = append(credentials, key)
		lines = append(lines, pick("X-API-Key: ", "x-api-key: ", "Authorization: Bearer ", "Authorization: bearer ", "X-API-KEY:")+key)
	}
	for range r.IntN(4) {
		lines = append(lines, spoofs[r.IntN(len(spoofs))]+": "+pick("evil", "owner-1", "root", "owner-2"))
	}
	if r.IntN(4) == 0 {
		lines = append(lines, "Connection: "+pick("keep-alive", "close")+", "+pick(spoofs...)+", "+pick("X-API-Key", "Authorization", "Host", "x-auth-subject"))
	}
	r.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	target := pick("/", "/x", "/open", "/open/x", "/open/../x", "/open%2f..%2fx", "/open//x", "/x?q=1", "/open?token=x", "/Open", "/open/%2e%2e/x")
	return "GET " + target + " HTTP/1.1\r\nHost: " + addr + "\r\n" + strings.Join(append(lines, "Accept: */*"), "\r\n") + "\r\n\r\n", credentials
}
