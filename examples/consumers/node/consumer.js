// Prints every event of a fieldpost topic once: node consumer.js BROKERS TOPIC GROUP, until SIGTERM.
const { CompressionCodecs, CompressionTypes, Kafka, logLevel } = require('kafkajs')
const lz4 = require('lz4js')

// kafkajs alone does not read fieldpost's lz4.
CompressionCodecs[CompressionTypes.LZ4] = () => ({ decompress: async (bytes) => Buffer.from(lz4.decompress(bytes)) })

const [brokers, topic, groupId] = process.argv.slice(2)
const kafka = new Kafka({ brokers: brokers.split(','), logLevel: logLevel.ERROR })
const admin = kafka.admin()
const consumer = kafka.consumer({ groupId })
const last = new Map() // by partition: by lane of a log: the last position [epoch, seq]
const next = new Map() // by partition: the offset up to which `last` is right

const isGreater = (a, b) => a[0] > b[0] || (a[0] === b[0] && a[1] > b[1])

function advance(positions, lane, position) {
  const known = positions.get(lane)
  if (known && !isGreater(position, known)) return false
  positions.set(lane, position)
  return true
}

// A partition that is new here, or comes back from another consumer: what was committed counts. Positions only grow,
// so the greater one is the later one.
async function positionsAt(partition, offset) {
  if (!last.has(partition)) last.set(partition, new Map())
  const positions = last.get(partition)
  if (next.get(partition) !== offset) {
    const [found] = await admin.fetchOffsets({ groupId, topics: [topic] })
    const { metadata } = found.partitions.find((committed) => committed.partition === partition)
    for (const word of (metadata || '').split(' ').filter(Boolean)) {
      const [lane, epoch, seq] = word.split(':')
      advance(positions, lane, [Number(epoch), Number(seq)])
    }
  }
  return positions
}

function isNew(positions, headers = {}) {
  if (!headers['fieldpost-log']) return true // not written by fieldpost
  const position = [Number(headers['fieldpost-epoch']), Number(headers['fieldpost-seq'])]
  const lane = `${headers['fieldpost-log']}${headers['fieldpost-backlog'] ? '+backlog' : ''}`
  return advance(positions, lane, position)
}

async function eachBatch({ batch, resolveOffset, heartbeat, isStale }) {
  if (isStale()) return
  const { partition } = batch
  const positions = await positionsAt(partition, batch.firstOffset())
  for (const message of batch.messages) {
    if (isNew(positions, message.headers)) {
      process.stdout.write(`${message.value}\n`) // the result: put your own work here
    }
  }
  // Results first, then offset and positions in one commit.
  const offset = String(BigInt(batch.lastOffset()) + 1n)
  const words = [...positions].map(([lane, [epoch, seq]]) => `${lane}:${epoch}:${seq}`)
  await consumer.commitOffsets([{ topic, partition, offset, metadata: words.join(' ') }])
  next.set(partition, offset)
  resolveOffset(batch.lastOffset())
  await heartbeat()
}

async function main() {
  await Promise.all([admin.connect(), consumer.connect()])
  await consumer.subscribe({ topic, fromBeginning: true })
  consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || process.exit(1))
  let work // The batch at hand; kafkajs leaves the group without waiting for it.
  let isStopping = false
  process.once('SIGTERM', async () => {
    isStopping = true
    await Promise.allSettled([work])
    await consumer.disconnect()
    await admin.disconnect()
  })
  await consumer.run({
    autoCommit: false,
    eachBatchAutoResolve: false,
    eachBatch: (payload) => isStopping ? undefined : (work = eachBatch(payload)),
  })
}

main().catch((problem) => {
  console.error(problem)
  process.exit(1)
})
