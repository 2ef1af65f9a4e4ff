package jwt

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// wycheproof is a file of C2SP/wycheproof.
type wycheproof struct {
	NumberOfTests int
	TestGroups    []struct {
		Comment string
		Public  json.RawMessage // a key or a set of keys
		Private json.RawMessage
		Tests   []struct {
			TcID    int
			Comment string
			JWS     json.RawMessage
			Result  string
			Flags   []string
		}
	}
}

func vectors(t *testing.T, name string) wycheproof {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "vectors", name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the vectors of C2SP/wycheproof are not beside this project")
	}
	if err != nil {
		t.Fatal(err)
	}
	var w wycheproof
	if err := json.Unmarshal(text, &w); err != nil {
		t.Fatal(err)
	}
	return w
}

// keysOf reads what a key set of ours would have of a JWK or a set of them.
func keysOf(raw json.RawMessage) (keys []*Key) {
	o, err := strictjson.Decode(raw)
	if err != nil {
		return nil
	}
	list := []any{o}
	if _, set := o["keys"]; set {
		list, _ = o["keys"].([]any)
	}
	for _, one := range list {
		if jwk, ok := one.(strictjson.Object); ok {
			if k, err := ParseKey(jwk); err == nil {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// accepts is what a verifier with these keys, and every algorithm, says.
func accepts(text string, keys []*Key) bool {
	token, _, r := parseSigned(text)
	if r != auth.ReasonNone {
		return false
	}
	return slices.ContainsFunc(keys, func(k *Key) bool {
		return (token.KeyID == "" || k.ID == token.KeyID) && token.Verify(k, Algorithms()) == auth.ReasonNone
	})
}

// otherAlgorithm reports whether every key is for another algorithm than the
// token's: some vectors call such tokens valid, which they are not here
// (RFC 8725, 3.1).
func otherAlgorithm(text string, keys []*Key) bool {
	token, _, r := parseSigned(text)
	return r == auth.ReasonNone && !slices.ContainsFunc(keys, func(k *Key) bool { return k.Fits(token.Algorithm) })
}

func TestWycheproof(t *testing.T) {
	ran, good := 0, 0
	for _, file := range []string{"json_web_signature_test.json", "json_web_crypto_test.json", "json_web_key_test.json"} {
		for _, g := range vectors(t, file).TestGroups {
			public := g.Public
			if public == nil { // a shared secret, or a set with one in it
				public = g.Private
			}
			keys := keysOf(public)
			for _, tc := range g.Tests {
				var text string
				if json.Unmarshal(tc.JWS, &text) != nil || text == "" { // the JSON form of a JWS, and encrypted ones
					text = string(tc.JWS)
				}
				ran++
				got := accepts(text, keys)
				if got && tc.Result != "valid" && !slices.Contains(tc.Flags, "Ambiguous") {
					t.Errorf("%s %s %d (%s, %v): accepted, wants %s", file, g.Comment, tc.TcID, tc.Comment, tc.Flags, tc.Result)
				}
				if got {
					good++
				} else if tc.Result == "valid" && g.Public != nil && !otherAlgorithm(text, keys) {
					t.Errorf("%s %s %d (%s, %v): refused, wants valid", file, g.Comment, tc.TcID, tc.Comment, tc.Flags)
				}
			}
		}
	}
	t.Logf("%d vectors, %d accepted", ran, good)
	if ran < 500 || good < 20 {
		t.Errorf("%d vectors ran and %d were accepted: the files were not understood", ran, good)
	}
}
