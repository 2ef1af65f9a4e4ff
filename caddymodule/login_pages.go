package caddymodule

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/body"
)

// The pages that people see. A file with the page's name and .html in the
// directory of templates replaces one, page.html all that have none.
const (
	pageError       = "signin-error"
	pageDenied      = "denied"
	pageExpired     = "expired"
	pageUnavailable = "unavailable"
	pageSignOut     = "sign-out"
	pageSignedOut   = "signed-out"
)

// pageData is what a template gets.
type pageData struct {
	Page   string // its name
	Login  string // the login's name
	Title  string
	Text   string
	Action *pageAction // what the person can do; nil: nothing
	// Instance is what to tell who runs this gateway; empty: nothing.
	Instance string
}

// pageAction is a link or, with Post, a button.
type pageAction struct {
	URL   string
	Label string
	Post  bool
}

// words of the pages: title, text and what the action is called.
var pageWords = map[string][3]string{
	pageError:       {"Signing in did not work", "It took too long, was finished in another tab or before, cookies are blocked, or something is wrong on our side. If you were signed in, you still are; else please try again.", "Sign in"},
	pageDenied:      {"You are not signed in", "The sign-in was cancelled, or you may not use this service.", "Sign in"},
	pageExpired:     {"Your session has ended", "You were signed out because some time has passed, or because you signed out elsewhere. What you just sent was not accepted. Sign in and send it again.", "Sign in"},
	pageUnavailable: {"Please try again in a moment", "This can't be answered right now. You are still signed in, if you were.", "Try again"},
	pageSignOut:     {"Sign out?", "You will be signed out of this service.", "Sign out"},
	pageSignedOut:   {"You are signed out", "You can close this window.", "Sign in"},
}

//go:embed pages/page.html
var defaultPage string

// pages are the templates of one login.
type pages struct{ byName map[string]*template.Template }

// maxTemplate is the longest template, in bytes.
const maxTemplate = 1 << 20

// newPages reads a directory of templates; "": none. A template that can't be
// shown is an error now, not when somebody needs it.
func newPages(dir string) (*pages, error) {
	all, err := template.New("page.html").Parse(defaultPage)
	if err != nil {
		return nil, fmt.Errorf("the page that is built in: %w", err)
	}
	p := &pages{map[string]*template.Template{}}
	found := []string{}
	read := func(name string, otherwise *template.Template) (*template.Template, error) {
		if dir == "" {
			return otherwise, nil
		}
		text, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return otherwise, nil
		}
		if err == nil && len(text) > maxTemplate {
			err = fmt.Errorf("%s is longer than %d bytes", name, maxTemplate)
		}
		if err != nil {
			return nil, err
		}
		found = append(found, name)
		return template.New(name).Option("missingkey=error").Parse(string(text))
	}
	if all, err = read("page.html", all); err != nil {
		return nil, err
	}
	for name := range pageWords {
		if p.byName[name], err = read(name+".html", all); err != nil {
			return nil, err
		}
		if _, err := p.render(name, sample(name)); err != nil {
			return nil, err
		}
	}
	if dir != "" && len(found) == 0 {
		return nil, fmt.Errorf("%s has no template: want page.html or some of %s", dir, strings.Join(pageFiles(), ", "))
	}
	return p, nil
}

func pageFiles() (names []string) {
	for name := range pageWords {
		names = append(names, name+".html")
	}
	slices.Sort(names)
	return names
}

func sample(name string) pageData {
	return pageData{Page: name, Login: "login", Title: "title", Text: "text", Action: &pageAction{"/", "label", name == pageSignOut}, Instance: "urn:uuid:0"}
}

func (p *pages) render(name string, data pageData) ([]byte, error) {
	var out bytes.Buffer
	if err := p.byName[name].Execute(&out, data); err != nil {
		return nil, fmt.Errorf("showing the page %s: %w", name, err)
	}
	return out.Bytes(), nil
}

// show answers with a page. back is where the person wanted to go, or "".
func (s *signIn) show(w http.ResponseWriter, r *http.Request, name string, status int, back string) error {
	return s.showInstance(w, r, name, status, back, "")
}

func (s *signIn) showInstance(w http.ResponseWriter, r *http.Request, name string, status int, back, instance string) error {
	if back == "" {
		back = "/"
	}
	text := s.page(name, back, instance)
	pageHeaders(w.Header())
	rest := body.Leave(w, r)
	boundAnswer(w, r)
	rest.Settle()
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(text) // the person may be gone
	}
	rest.Finish()
	return nil
}

// page is one page as HTML.
func (s *signIn) page(name, back, instance string) []byte {
	words := pageWords[name]
	signIn := s.SignInPath + "?return=" + url.QueryEscape(back)
	data := pageData{Page: name, Login: s.name, Title: words[0], Text: words[1], Action: &pageAction{URL: signIn, Label: words[2]}, Instance: instance}
	switch name {
	case pageSignOut:
		data.Action.URL, data.Action.Post = s.LogoutPath, true
	case pageUnavailable:
		data.Action.URL = back
	}
	text, err := s.pages.render(name, data)
	if err != nil { // it was shown when it was loaded
		return []byte(words[0])
	}
	return text
}

// pageHeaders are those of every page: nobody frames it, keeps it, or runs
// anything in it.
func pageHeaders(h http.Header) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	// Not no-referrer: then the button's form would come from the origin "null".
	h.Set("Referrer-Policy", "same-origin")
}
