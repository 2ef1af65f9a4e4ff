// What people do, in Chromium: the whole way from a deep link to a sign-out. It
// says what it wants done around it, one line each, and waits until that is so.
// Usage: node browser.mjs ORIGIN PROVIDER DIRECTORY-FOR-SCREENSHOTS
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { chromium } from 'playwright-core'

const [origin, provider, shots] = process.argv.slice(2)
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const around = async (what) => {
  console.log(`DO ${what}`)
  await lines.next()
}

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] })
const fresh = async (options = {}) => {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, ...options })
  context.setDefaultTimeout(10000)
  return context
}
const step = (text) => console.log(`STEP ${text}`)
const session = async (context) => (await context.cookies(origin)).find((c) => c.name === '__Host-caddy-auth-session-corp')

// atProvider fills in the provider's pages.
async function atProvider(page, name, { cancel = false } = {}) {
  assert.ok(page.url().startsWith(provider), page.url())
  if (await page.locator('input[name=login]').count()) {
    await page.fill('input[name=login]', name)
    await page.fill('input[name=password]', 'x')
    await page.click('button[type=submit]')
    await page.waitForLoadState()
  }
  if (cancel) {
    await page.click('text=Cancel')
  } else if (page.url().startsWith(provider)) {
    await page.click('button[type=submit]')
  }
  await page.waitForLoadState()
}

async function signIn(context, path, name) {
  const page = await context.newPage()
  await page.goto(origin + path)
  await atProvider(page, name)
  assert.equal(page.url(), origin + path)
  assert.equal(await page.textContent('h1'), `Hello corp:${name}`)
  return page
}

// looked takes a picture of a page of ours and has it judged.
async function looked(page, name, title) {
  assert.equal(await page.title(), title)
  await page.screenshot({ path: `${shots}/${name}.png` })
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme })
    await page.evaluate(axe)
    const { violations } = await page.evaluate('axe.run()')
    assert.deepEqual(violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.html)}`), [], `${name}, ${scheme}`)
  }
  await page.screenshot({ path: `${shots}/${name}-dark.png` })
  await page.emulateMedia({ colorScheme: 'light' })
}

const api = (page) => page.evaluate(async () => {
  const res = await fetch('/api/x')
  return { status: res.status, to: res.redirected, body: await res.text() }
})
const tokenOf = (a) => JSON.parse(a.body).Header.Authorization?.[0]

try {
  step('a deep link is kept')
  const alice = await fresh({ bypassCSP: true })
  const page = await signIn(alice, '/deep/link?x=1&y=%2F', 'alice')
  const cookie = await session(alice)
  assert.ok(cookie.secure && cookie.httpOnly && cookie.sameSite === 'Lax' && cookie.path === '/' && cookie.expires === -1, JSON.stringify(cookie))
  assert.equal((await alice.cookies(origin)).filter((c) => c.name.startsWith('__Host-')).length, 1)

  step('a script asks, and gets an answer')
  const first = await api(page)
  assert.equal(first.status, 200)
  assert.match(tokenOf(first), /^Bearer \S+$/)

  step('another tab is signed in')
  const tab = await alice.newPage()
  await tab.goto(origin + '/tab')
  assert.equal(await tab.textContent('h1'), 'Hello corp:alice')

  step('the access token expires during use')
  let renewed = first
  const until = Date.now() + 15000
  while (tokenOf(renewed) === tokenOf(first)) {
    assert.ok(Date.now() < until, 'it is never refreshed')
    const many = await Promise.all(Array.from({ length: 20 }, () => api(page)))
    assert.deepEqual(many.map((a) => a.status), Array(20).fill(200))
    renewed = many[19]
  }

  step('the provider and Redis die, and nobody is signed out')
  await around('kill')
  await tab.reload()
  assert.equal(await tab.textContent('h1'), 'Hello corp:alice')
  const without = await fresh({ bypassCSP: true })
  const stuck = await without.newPage()
  await stuck.goto(origin + '/stuck').catch(() => {}) // the provider is not there
  assert.equal(await session(without), undefined)
  await around('restart')
  await stuck.goto(origin + '/stuck')
  await atProvider(stuck, 'bob')
  assert.equal(await stuck.textContent('h1'), 'Hello corp:bob')
  await without.close()

  step('three tabs sign in at the same time')
  const carol = await fresh()
  const tabs = await Promise.all([1, 2, 3].map(async (n) => {
    const p = await carol.newPage()
    await p.goto(`${origin}/tab/${n}`)
    return p
  }))
  for (const [i, p] of tabs.entries()) {
    await p.bringToFront()
    await atProvider(p, 'carol')
    assert.equal(p.url(), `${origin}/tab/${i + 1}`)
  }

  step('another site can sign nobody out')
  await tabs[0].goto(provider + '/.well-known/openid-configuration')
  await tabs[0].setContent(`<form method=post action="${origin}/auth/logout"><button>x</button></form>`)
  const [res] = await Promise.all([tabs[0].waitForResponse((r) => r.url().endsWith('/auth/logout')), tabs[0].click('button')])
  assert.equal(res.status(), 403)
  await tabs[1].reload()
  assert.equal(await tabs[1].textContent('h1'), 'Hello corp:carol')
  await carol.close()

  step('signing out in one tab ends all')
  const dave = await fresh({ bypassCSP: true })
  const out = await signIn(dave, '/here', 'dave')
  const other = await dave.newPage()
  await other.goto(origin + '/other')
  await out.goto(origin + '/auth/logout')
  await looked(out, 'sign-out', 'Sign out?')
  await out.click('button')
  await out.waitForLoadState()
  assert.ok(out.url().startsWith(provider), out.url())
  await out.click('button[value=yes]')
  await out.waitForURL(origin + '/auth/logout*')
  await looked(out, 'signed-out', 'You are signed out')
  assert.equal(await session(dave), undefined)
  assert.equal((await api(other)).status, 401)
  await other.reload()
  assert.ok(other.url().startsWith(provider), other.url())

  step('the back button shows nothing of before')
  for (let i = 0; i < 4 && !out.url().endsWith('/here'); i++) await out.goBack().catch(() => {})
  await out.waitForLoadState()
  assert.notEqual(await out.textContent('body').catch(() => ''), 'Hello corp:dave')
  assert.ok(!(await out.content()).includes('Hello corp:dave'), out.url())
  await dave.close()

  step('the consent is denied')
  const erin = await fresh({ bypassCSP: true })
  const no = await erin.newPage()
  await no.goto(origin + '/wanted')
  await atProvider(no, 'erin', { cancel: true })
  assert.ok(no.url().startsWith(origin + '/auth/callback'), no.url())
  await looked(no, 'denied', 'You are not signed in')
  await no.click('a.act') // and then it is given
  await atProvider(no, 'erin')
  assert.equal(no.url(), origin + '/wanted')
  await no.goBack() // to the provider, or the callback: it signs in nobody anew
  await no.goto(origin + '/auth/login?return=https://evil.example/')
  assert.equal(no.url(), origin + '/')

  step('the session ends while a form is open')
  await no.goto(origin + '/form')
  await erin.clearCookies({ domain: new URL(origin).hostname, name: '__Host-caddy-auth-session-corp' })
  await no.click('button')
  await looked(no, 'expired', 'Your session has ended')
  await erin.close()

  step('cookies are blocked')
  const frank = await fresh({ bypassCSP: true })
  const blocked = await frank.newPage()
  await blocked.goto(origin + '/page')
  await frank.clearCookies({ domain: new URL(origin).hostname, name: /^__Host-/ })
  await atProvider(blocked, 'frank')
  await looked(blocked, 'signin-error', 'Signing in did not work')
  await frank.close()

  step('all of it without JavaScript')
  const grace = await fresh({ javaScriptEnabled: false })
  const plain = await signIn(grace, '/plain', 'grace')
  await plain.goto(origin + '/auth/logout')
  await plain.click('button')
  await plain.waitForLoadState()
  await plain.click('button[value=yes]')
  await plain.waitForURL(origin + '/auth/logout*')
  assert.equal(await plain.title(), 'You are signed out')
  await grace.close()

  step('who signs out at the provider is signed out here')
  const heidi = await fresh()
  const here = await signIn(heidi, '/here', 'heidi')
  const there = await heidi.newPage()
  await there.goto(provider + '/session/end')
  await there.click('button[value=yes]')
  await there.waitForLoadState()
  assert.equal((await api(here)).status, 401)
  await heidi.close()

  console.log('DONE')
} finally {
  await browser.close()
  process.stdin.destroy() // else it would wait for another line
}
