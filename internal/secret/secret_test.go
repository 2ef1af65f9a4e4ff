package secret_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

func minter(t testing.TB, secrets ...byte) *secret.Minter {
	t.Helper()
	var ss [][]byte
	for _, b := range secrets {
		ss = append(ss, bytes.Repeat([]byte{b}, secret.MintingSecretLen))
	}
	m, err := secret.NewMinter(ss, []string{"ca", "acme"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMint_FormatAndTag(t *testing.T) {
	m := minter(t, 1)
	seen := map[string]bool{}
	for range 200 {
		s, err := m.Mint("ca", "live")
		if err != nil {
			t.Fatal(err)
		}
		key := s.Reveal()
		if !strings.HasPrefix(key, "ca_live_") || len(key) != len("ca_live_")+51 {
			t.Fatalf("key %q has the wrong shape", key)
		}
		if seen[key] {
			t.Fatal("minted twice")
		}
		seen[key] = true
		if got := m.Check(key); got != auth.ReasonNone {
			t.Fatalf("Check = %v", got)
		}
		if got, want := secret.Hint(key), "ca_live_..."+key[len(key)-4:]; got != want {
			t.Fatalf("Hint = %q, want %q", got, want)
		}
		if got, want := key[len(key)-8:], independentTag(bytes.Repeat([]byte{1}, 32), key[:len(key)-8]); got != want {
			t.Fatalf("tag = %q, want %q", got, want)
		}
	}
}

// independentTag computes the tag by the words of the design, with big numbers.
func independentTag(minting []byte, head string) string {
	mac := hmac.New(sha256.New, minting)
	mac.Write([]byte(head))
	n := new(big.Int).SetBytes(mac.Sum(nil)[:8])
	n.Mod(n, new(big.Int).Exp(big.NewInt(62), big.NewInt(8), nil))
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	out := ""
	for range 8 {
		d := new(big.Int)
		n.DivMod(n, big.NewInt(62), d)
		out = string(digits[d.Int64()]) + out
	}
	return out
}

func TestCheck_RefusesEveryChangedCharacter(t *testing.T) {
	m := minter(t, 1)
	s, _ := m.Mint("ca", "live")
	key := s.Reveal()
	for i := range len(key) {
		for bit := range 8 {
			b := []byte(key)
			b[i] ^= 1 << bit
			if got := m.Check(string(b)); got == auth.ReasonNone {
				t.Fatalf("bit %d of character %d flipped: accepted", bit, i)
			}
		}
	}
	for _, bad := range []string{
		"", key[:len(key)-1], key + "0", strings.ToUpper(key), `"` + key + `"`, key + "," + key, key + "*",
		strings.Replace(key, "live", "test", 1), strings.Replace(key, "ca_", "acme_", 1), strings.Replace(key, "ca_", "zz_", 1),
		strings.Replace(key, "_live_", "__live_", 1), strings.Repeat("a", 1<<16),
	} {
		if m.Check(bad) == auth.ReasonNone {
			t.Errorf("accepted %.80q", bad)
		}
	}
}

func TestCheck_RingOfMintingSecrets(t *testing.T) {
	old, both, other := minter(t, 1), minter(t, 2, 1), minter(t, 3)
	s, _ := old.Mint("ca", "live")
	if got := both.Check(s.Reveal()); got != auth.ReasonNone {
		t.Errorf("a key of the older secret: %v", got)
	}
	if got := other.Check(s.Reveal()); got != auth.ReasonForged {
		t.Errorf("a key of another secret: %v", got)
	}
}

func TestMint_RefusesReservedAndOddNames(t *testing.T) {
	m := minter(t, 1)
	for _, c := range [][2]string{{"ca", "at"}, {"ca", "rt"}, {"ca", "cs"}, {"ca", "Live"}, {"ca", ""}, {"ca", "a_b"}, {"Ca", "live"}, {"", "live"}, {"ca", strings.Repeat("a", 17)}, {"1a", "live"}} {
		if _, err := m.Mint(c[0], c[1]); !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("Mint(%q, %q) = %v, want ErrInvalid", c[0], c[1], err)
		}
	}
}

func TestRing_SealsAndBindsToName(t *testing.T) {
	a, _ := secret.NewRing("wrap", bytes.Repeat([]byte{1}, 32))
	b, _ := secret.NewRing("wrap", bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{1}, 32))
	c, _ := secret.NewRing("other", bytes.Repeat([]byte{1}, 32))
	sealed := a.Seal("minting/1", []byte("s3cret"))
	if bytes.Contains(sealed, []byte("s3cret")) {
		t.Fatal("sealed text shows the secret")
	}
	if plain, err := b.Open("minting/1", sealed); err != nil || string(plain) != "s3cret" {
		t.Fatalf("Open = %q, %v", plain, err)
	}
	if _, err := a.Open("minting/2", sealed); !errors.Is(err, auth.ErrCorrupt) {
		t.Errorf("moved to another name: %v", err)
	}
	if _, err := c.Open("minting/1", sealed); !errors.Is(err, secret.ErrWrongKey) {
		t.Errorf("another purpose: %v", err)
	}
	for i := range sealed {
		x := bytes.Clone(sealed)
		x[i] ^= 1
		if _, err := a.Open("minting/1", x); err == nil {
			t.Fatalf("byte %d changed: opened", i)
		}
	}
	if _, err := a.Open("minting/1", sealed[:5]); !errors.Is(err, auth.ErrCorrupt) {
		t.Errorf("truncated: %v", err)
	}
}

func TestParseMasterKey(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb}, 32)
	for _, ok := range []string{
		base64.StdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw), hex.EncodeToString(raw), " " + hex.EncodeToString(raw) + "\n",
	} {
		if got, err := secret.ParseMasterKey(auth.NewSecret(ok)); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%q: %x, %v", ok, got, err)
		}
	}
	for _, bad := range []string{"", "short", base64.StdEncoding.EncodeToString(raw[:31]), base64.StdEncoding.EncodeToString(append(raw, 1))} {
		_, err := secret.ParseMasterKey(auth.NewSecret(bad))
		if !errors.Is(err, auth.ErrInvalid) || auth.Hint(err) == "" {
			t.Errorf("%q: %v", bad, err)
		}
		if bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("the error repeats the key: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	m := minter(f, 1)
	s, _ := m.Mint("ca", "live")
	f.Add(s.Reveal())
	f.Add("ca_live_")
	f.Add("__")
	f.Fuzz(func(t *testing.T, key string) {
		prefix, env, ok := secret.Parse(key)
		if !ok {
			if m.Check(key) != auth.ReasonMalformed {
				t.Fatal("Check and Parse differ")
			}
			return
		}
		if prefix+"_"+env+"_"+key[len(key)-auth.KeyTailLen:] != key {
			t.Fatalf("parts of %q do not make it up again", key)
		}
		head, tag := key[:len(key)-8], key[len(key)-8:]
		right := tag == independentTag(bytes.Repeat([]byte{1}, 32), head)
		if passed := m.Check(key) == auth.ReasonNone; passed && !right {
			t.Fatalf("a forged key passed: %q", key)
		}
	})
}
