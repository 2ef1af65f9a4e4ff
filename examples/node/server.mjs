// A service behind the gateway. Run it with:
//   KEYS_URL=https://api.example.com/.well-known/jwks.json AUDIENCE=orders PORT=9000 node server.mjs
import { createServer } from 'node:http'
import { Gateway, Refused } from './assertion.mjs'

const gateway = new Gateway({ keysURL: process.env.KEYS_URL, audience: process.env.AUDIENCE, issuer: process.env.ISSUER })

createServer(async (request, response) => {
  const answer = (status, body) => response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
  try {
    const caller = await gateway.identify(request)
    answer(200, { hello: caller.sub, scopes: caller.scope })
  } catch (error) {
    answer(error instanceof Refused ? 401 : 503, { error: error.message })
  }
}).listen(Number(process.env.PORT ?? 9000), '127.0.0.1')
