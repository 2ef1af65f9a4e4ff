// Tokens that the library jose makes. GET /keys is a key set, POST /sign/ALG
// signs the claims that are posted. Usage: node signer.mjs
import { createServer } from 'node:http'
import { generateKeyPair, exportJWK, SignJWT } from 'jose'

const keys = {}
for (const alg of ['RS256', 'PS256', 'ES256', 'ES384', 'EdDSA', 'Ed25519']) {
  const pair = await generateKeyPair(alg, { extractable: true })
  keys[alg] = { ...pair, jwk: { ...(await exportJWK(pair.publicKey)), alg, use: 'sig', kid: alg } }
}

const server = createServer(async (req, res) => {
  res.setHeader('Content-Type', 'application/json')
  if (req.url === '/keys') {
    res.end(JSON.stringify({ keys: Object.values(keys).map((k) => k.jwk) }))
    return
  }
  let body = ''
  for await (const chunk of req) body += chunk
  const alg = req.url.split('/')[2]
  res.end(await new SignJWT(JSON.parse(body)).setProtectedHeader({ alg, kid: alg, typ: 'at+jwt' }).sign(keys[alg].privateKey))
})
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`))
