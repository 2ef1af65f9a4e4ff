package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

const (
	chartWidth, barHeight, barGap = 760, 18, 10
	labelWidth, valueWidth        = 350, 60
)

// bars are the rows of the chart, by what each means to who reads it.
func bars(r *Report) (names []string, values []float64) {
	names, values = []string{"plain Caddy, no authentication"}, []float64{1}
	for _, s := range r.Sections {
		for _, row := range s.Rows {
			if row.Name == selfRow || s.Suite == "settings" || s.Suite == "assertions" || s.Suite == "growth" || strings.HasPrefix(row.Name, "Caddy ") || strings.HasPrefix(row.Name, "key in memory /") { // compared with something else, or no gateway
				continue
			}
			names, values = append(names, strings.ReplaceAll(row.Name, "`", "")), append(values, row.Ratio)
		}
	}
	return names, values
}

// chart draws CPU per request against plain Caddy as SVG.
func chart(r *Report) string {
	names, values := bars(r)
	most := 1.0
	for _, v := range values {
		most = math.Max(most, v)
	}
	scale := float64(chartWidth-labelWidth-valueWidth) / most
	height := 46 + len(names)*(barHeight+barGap)
	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="CPU per request against plain Caddy" font-family="system-ui, sans-serif" font-size="13">`+"\n", chartWidth, height, chartWidth, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", chartWidth, height)
	fmt.Fprintf(&out, `<text x="12" y="24" font-size="15" font-weight="600" fill="#1f2933">CPU per request, plain Caddy = 1 (less is better)</text>`+"\n")
	one := float64(labelWidth) + scale
	fmt.Fprintf(&out, `<line x1="%.1f" y1="34" x2="%.1f" y2="%d" stroke="#9aa5b1" stroke-dasharray="3 3"/>`+"\n", one, one, height-6)
	for i, name := range names {
		y := 40 + i*(barHeight+barGap)
		fill := "#2f6f4f"
		if i == 0 || strings.Contains(name, "forward_auth") || strings.Contains(name, "nginx") {
			fill = "#9aa5b1"
		}
		fmt.Fprintf(&out, `<text x="%d" y="%d" text-anchor="end" fill="#1f2933">%s</text>`, labelWidth-10, y+13, html.EscapeString(name))
		fmt.Fprintf(&out, `<rect x="%d" y="%d" width="%.1f" height="%d" rx="2" fill="%s"/>`, labelWidth, y, values[i]*scale, barHeight, fill)
		fmt.Fprintf(&out, `<text x="%.1f" y="%d" fill="#1f2933">%.2f</text>`+"\n", float64(labelWidth)+values[i]*scale+6, y+13, values[i])
	}
	out.WriteString("</svg>\n")
	return out.String()
}
