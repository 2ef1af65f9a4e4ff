package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestSlots_SlowRequestsKeepTheirIdentity: the memory tier's slots go to other
// keys, again and again, while requests are under way; what the upstream sees,
// and what placeholders say at the end, stays each request's own.
func TestSlots_SlowRequestsKeepTheirIdentity(t *testing.T) {
	const slow, others = 40, 200
	g := start(t, options{auth: "cache {\nsize 8\n}", site: "auth\nheader >X-Who {http.auth.user.id}\nheader >X-Key {http.auth.user.credential_id}"})
	keys := make([]manage.Made, others)
	for i := range keys {
		keys[i] = g.key(manage.KeySpec{Owner: fmt.Sprintf("owner-%d", i)})
	}
	var begun, wg sync.WaitGroup
	release := make(chan struct{})
	for i := range slow {
		begun.Add(1)
		wg.Go(func() {
			body, w := io.Pipe()
			req, err := http.NewRequest(http.MethodPost, "http://"+g.addr+"/", body)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("X-API-Key", keys[i].Text.Reveal())
			go func() {
				_, _ = w.Write([]byte("begun")) // returns when it was read: the request is under way
				begun.Done()
				<-release
				_ = w.Close()
			}()
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			var saw seen
			if err := json.NewDecoder(res.Body).Decode(&saw); err != nil {
				t.Errorf("status %d: %v", res.StatusCode, err)
				return
			}
			want, id := keys[i].Key.Owner, keys[i].Key.ID
			if got := []string{saw.Header.Get("X-Auth-Subject"), res.Header.Get("X-Who"), saw.Header.Get("X-Auth-Credential-Id"), res.Header.Get("X-Key")}; got[0] != want || got[1] != want || got[2] != id || got[3] != id {
				t.Errorf("%s %s: %v", want, id, got)
			}
		})
	}
	begun.Wait()
	var herd sync.WaitGroup
	for worker := range 4 {
		herd.Go(func() {
			for i := range others {
				one := keys[(i+worker*50)%others]
				a := g.get("/", "X-API-Key: "+one.Text.Reveal())
				var saw seen
				if err := json.Unmarshal([]byte(a.Body), &saw); err != nil || saw.Header.Get("X-Auth-Subject") != one.Key.Owner {
					t.Errorf("%s was taken for %s (status %d, %v)", one.Key.Owner, saw.Header.Get("X-Auth-Subject"), a.Status, err)
				}
			}
		})
	}
	herd.Wait()
	close(release)
	wg.Wait()
}
