package caddymodule

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progress tells a person how far long work is: one line that is written over
// on a terminal, else a line now and then.
type progress struct {
	out      io.Writer
	terminal bool
	began    time.Time
	shown    time.Time
	stage    string
	open     bool // a line on the terminal is not ended
}

// How often progress is shown.
const (
	progressOnTerminal = 200 * time.Millisecond
	progressElsewhere  = 5 * time.Second
	progressWidth      = 24
)

func (s *session) progress() *progress {
	f, ok := s.err.(*os.File)
	now := time.Now()
	return &progress{out: s.err, terminal: ok && term.IsTerminal(int(f.Fd())), began: now, shown: now}
}

// show tells that done of total are done, in a stage of the work.
func (p *progress) show(stage, what string, done, total int64) {
	now := time.Now()
	if stage != p.stage {
		p.end()
		p.stage, p.began = stage, now
	}
	every := progressElsewhere
	if p.terminal {
		every = progressOnTerminal
	}
	if now.Sub(p.shown) < every || total <= 0 {
		return
	}
	p.shown = now
	text := fmt.Sprintf("%s: %d of %d (%s)", stage, done, total, what)
	if rate := float64(done) / now.Sub(p.began).Seconds(); rate > 0 {
		left := time.Duration(float64(total-done) / rate * float64(time.Second))
		text += fmt.Sprintf(", %.0f/s, %s left", rate, left.Round(time.Second))
	}
	if !p.terminal {
		fmt.Fprintln(p.out, text)
		return
	}
	filled := int(progressWidth * done / total)
	fmt.Fprintf(p.out, "\r[%s%s] %3d%% %s\x1b[K", strings.Repeat("#", filled), strings.Repeat(".", progressWidth-filled), 100*done/total, text)
	p.open = true
}

// end ends the line on a terminal.
func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
}
