package outbound

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// secretFile is a file that can be replaced as operators do it.
type secretFile struct {
	t    *testing.T
	path string
}

func newSecretFile(t *testing.T, text string) secretFile {
	f := secretFile{t, filepath.Join(t.TempDir(), "secret")}
	f.write(text)
	return f
}

func (f secretFile) write(text string) {
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f secretFile) move(text string) {
	if err := os.WriteFile(f.path+".new", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

// TestFile_Changes: a file is taken as it is replaced, written in place or
// linked elsewhere; what can't be used leaves the old secret and is told once.
func TestFile_Changes(t *testing.T) {
	at := newSecretFile(t, "one\n")
	f, err := NewFile(at.path, grant.CheckValue)
	if err != nil {
		t.Fatal(err)
	}
	var changed, broken, mended, called atomic.Int32
	var why atomic.Pointer[error]
	f.SetEvents(FileEvents{
		Changed: func() { changed.Add(1) }, Mended: func() { mended.Add(1) },
		Broken: func(err error) { why.Store(&err); broken.Add(1) },
	})
	defer f.Watch(func() { called.Add(1) })()
	is := func(what, text string) {
		t.Helper()
		began := time.Now()
		within(t, what, func() bool { return f.Current().Reveal() == text })
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
	}
	is("at first", "one")
	at.move("two")
	is("moved", "two")
	at.write("three\r\n")
	is("written in place", "three")
	other := newSecretFile(t, "four")
	if err := errors.Join(os.Remove(at.path), os.Symlink(other.path, at.path)); err != nil {
		t.Fatal(err)
	}
	is("linked", "four")
	other.move("five")
	is("behind the link", "five")

	for n, text := range []string{"", "a\nb", "\x00", strings.Repeat("x", maxSecretFile+1), "ä"} {
		other.write(text)
		within(t, "it is told", func() bool { return int(broken.Load()) == n+1 })
		if msg := (*why.Load()).Error(); f.Good() || strings.Contains(msg, "ä") || strings.Contains(msg, "xxx") {
			t.Errorf("good: %v, %s", f.Good(), msg)
		}
	}
	_ = os.Remove(at.path)
	within(t, "it is told that it is gone", func() bool { return broken.Load() == 6 })
	if f.Current().Reveal() != "five" {
		t.Error("another secret")
	}
	at.write("five")
	within(t, "it is told that it is back", func() bool { return mended.Load() == 1 && f.Good() })
	at.move("six")
	is("after all that", "six")
	within(t, "the changes are told", func() bool { return changed.Load() == 5 && called.Load() == 5 })
}

// TestFile_AtOnce: a file that can't be used at first is an error with a hint.
func TestFile_AtOnce(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none"), dir, "/dev/null", "/dev/zero"} {
		if _, err := NewFile(path, grant.CheckValue); err == nil || auth.Hint(err) == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestStatic_RefusedLooks: a key that the upstream refuses may just have been
// replaced in its file.
func TestStatic_RefusedLooks(t *testing.T) {
	at := newSecretFile(t, "one")
	f, err := NewFile(at.path, grant.CheckValue)
	if err != nil {
		t.Fatal(err)
	}
	s := NewStatic("Authorization", "Bearer ", f) // nobody watches
	first := get(t, s)
	if _, err := s.Renew(t.Context(), first); !errors.Is(err, ErrKept) || first.Value.Reveal() != "Bearer one" {
		t.Errorf("%v %s", err, first.Value.Reveal())
	}
	at.move("two")
	within(t, "it looks", func() bool {
		c, err := s.Renew(t.Context(), first)
		return err == nil && c.Value.Reveal() == "Bearer two" && get(t, s).Is(c)
	})
	if c, err := s.Renew(t.Context(), first); err != nil || c.Is(first) {
		t.Errorf("%v", err)
	}
}

func TestCheckHeader(t *testing.T) {
	for _, name := range []string{"X-API-Key", "Authorization", "x-vendor_key"} {
		if err := CheckHeader(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "Cookie", "X Key", "X-Key:", "X-Kéy", "Host", "host", "Connection", "Transfer-Encoding", "content-length", "TE", "Upgrade", "Proxy-Authorization"} {
		if err := CheckHeader(name); err == nil {
			t.Error(name)
		}
	}
	for _, text := range []string{"", " x", "x ", "a\r\nb", "a\tb", "\x7f", "ä", strings.Repeat("x", 16<<10+1)} {
		if err := grant.CheckValue(text); err == nil {
			t.Errorf("%.20q", text)
		}
	}
}
