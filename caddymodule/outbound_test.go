package caddymodule

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
)

// TestHiddenTexts: a secret stays masked however many tokens come, tokens while
// they are good; nothing comes back when the source is gone.
func TestHiddenTexts(t *testing.T) {
	hidden := func(text string) bool { return masker.String("it said "+text) != "it said "+text }
	var h hiddenTexts
	h.hideSecret(auth.NewSecret("first secret"))
	h.hideSecret(auth.NewSecret("second secret"))
	now := time.Now()
	for n := range 50 {
		h.hideToken(outbound.Grant{Token: auth.NewSecret(fmt.Sprintf("opaque token %d", n)), Expires: now.Add(time.Hour)})
		h.hideToken(outbound.Grant{Token: auth.NewSecret(fmt.Sprintf("expired token %d", n)), Expires: now.Add(-time.Second)})
	}
	for _, text := range []string{"first secret", "second secret", "opaque token 0", "opaque token 49", "expired token 49"} {
		if !hidden(text) {
			t.Errorf("%s is shown", text)
		}
	}
	if hidden("expired token 3 ") {
		t.Error("an expired token is kept for ever")
	}
	h.forget()
	h.hideSecret(auth.NewSecret("third secret"))
	if hidden("first secret") || hidden("third secret") {
		t.Error("a source that is gone hides for ever")
	}
}
