// The door's writing half: writers, claims, reads, and the copy engine.
// One short body per function of gft.h; the promises are there.
#include <cstring>

#include "arena/inspect.h"
#include "door.h"

using gft::behind_wall;
using gft::parent_of;
using gft::specs;
using gft::view;
using gft::views;

namespace {

const std::string *pointer(const std::optional<std::string> &text) { return text ? &*text : nullptr; }

gft::Identity whole(const gft_identity &raw) {
  return {std::to_array(raw.name_space_id),
          raw.shard,
          raw.position,
          raw.epoch,
          raw.payload_bytes,
          std::string(view(raw.hash)),
          std::to_array(raw.parent_link),
          std::to_array(raw.link),
          std::to_array(raw.digest)};
}

// The hash stays where the header is.
gft_identity shown(const gft::SlotHeader &header) {
  gft_identity out = {{}, header.shard, header.position, header.epoch, header.payload_bytes, {header.hash, header.hash_bytes},
                      {}, {},           {}};
  std::memcpy(out.name_space_id, header.name_space_id, 16);
  std::memcpy(out.parent_link, header.parent_link, 16);
  std::memcpy(out.link, header.link, 16);
  std::memcpy(out.digest, header.digest, 16);
  return out;
}

}  // namespace

gft_status gft_arena_attach(gft_arena *arena, uint32_t shard, const uint8_t token[16], uint32_t name_space, int takeover,
                            gft_writer **out) {
  return behind_wall(
      [&] { *out = new gft_writer{gft::Writer::attach(arena->core, shard, token, name_space, takeover != 0)}; });
}

gft_status gft_writer_close(gft_writer *writer) {
  return behind_wall([&] { writer->writer->close(); });
}

void gft_writer_free(gft_writer *writer) { delete writer; }

void gft_writer_info(gft_writer *writer, uint32_t *shard, uint64_t *epoch, uint32_t *name_space) {
  *shard = writer->writer->shard;
  *epoch = writer->writer->epoch;
  *name_space = writer->writer->name_space.index;
}

gft_status gft_writer_claim(gft_writer *writer, gft_bytes hash, gft_bytes parent, uint64_t position, gft_claim **out) {
  *out = nullptr;
  bool present = false;
  gft_status status = behind_wall([&] {
    auto before = parent_of(parent);
    auto claim = gft::Claim::open(writer->writer, view(hash), pointer(before), position);
    present = !claim;
    if (claim) writer->writer->core().prefault_payload(claim->slot());
    if (claim) *out = new gft_claim{std::move(claim)};
  });
  return status == GFT_OK && present ? GFT_PRESENT : status;
}

void gft_claim_info(gft_claim *claim, uint64_t *slot, uint64_t *address) {
  *slot = claim->claim->slot();
  *address = reinterpret_cast<uint64_t>(claim->claim->payload());
}

gft_status gft_claim_seal(gft_claim *claim) {
  return behind_wall([&] { claim->claim->seal(); });
}

gft_status gft_claim_seal_as(gft_claim *claim, const gft_identity *identity, gft_bytes parent, int hold) {
  bool sealed = true;
  gft_status status = behind_wall([&] {
    auto before = parent_of(parent);
    sealed = claim->claim->seal_as(whole(*identity), pointer(before), hold != 0);
  });
  return status == GFT_OK && !sealed ? GFT_PRESENT : status;
}

gft_status gft_claim_abandon(gft_claim *claim) {
  return behind_wall([&] { claim->claim->abandon(); });
}

void gft_claim_free(gft_claim *claim) { delete claim; }

gft_status gft_writer_hold(gft_writer *writer, const gft_bytes *hashes, size_t count) {
  return behind_wall([&] { writer->writer->mark(views(hashes, count), gft::Writer::Mark::hold); });
}

gft_status gft_writer_release(gft_writer *writer, const gft_bytes *hashes, size_t count) {
  return behind_wall([&] { writer->writer->mark(views(hashes, count), gft::Writer::Mark::release); });
}

gft_status gft_writer_touch(gft_writer *writer, const gft_bytes *hashes, size_t count) {
  return behind_wall([&] { writer->writer->mark(views(hashes, count), gft::Writer::Mark::touch); });
}

gft_status gft_writer_pin(gft_writer *writer, const gft_bytes *hashes, size_t count, uint32_t until, uint64_t *pinned) {
  return behind_wall([&] { *pinned = writer->writer->pin(views(hashes, count), until); });
}

gft_status gft_writer_find(gft_writer *writer, gft_bytes hash, gft_bytes parent, gft_read **out) {
  return behind_wall([&] {
    auto before = parent_of(parent);
    gft::Sealed sealed = writer->writer->find(view(hash), pointer(before));
    writer->writer->core().prefault_payload(sealed.slot);
    *out = new gft_read{writer->writer, sealed};
  });
}

void gft_read_info(gft_read *read, uint64_t *slot, uint64_t *address, uint64_t *payload_bytes) {
  *slot = read->sealed.slot;
  *address = reinterpret_cast<uint64_t>(read->writer->core().payload(read->sealed.slot));
  *payload_bytes = read->sealed.header.payload_bytes;
}

void gft_read_identity(gft_read *read, gft_identity *out) { *out = shown(read->sealed.header); }

gft_status gft_arena_read_block(gft_arena *arena, uint64_t slot, uint8_t *to, uint8_t hash[64], gft_identity *out) {
  return behind_wall([&] {
    gft::SlotHeader header = gft::read_slot(*arena->core, slot, to);
    std::memcpy(hash, header.hash, header.hash_bytes);
    *out = shown(header);
    out->hash.data = hash;
  });
}

gft_status gft_identity_link(const gft_identity *identity, uint8_t out[16]) {
  return behind_wall([&] {
    if (identity->hash.size == 0 || identity->hash.size > gft::kHashBytes)
      gft::fail(GFT_INVALID, "a block hash of %zu bytes; it must have between 1 and %u", identity->hash.size, gft::kHashBytes);
    gft::SlotHeader header{};
    gft::put_identity(whole(*identity), header);
    std::memcpy(out, gft::Core::link_of(gft::preferred_digest(), header).data(), 16);
  });
}

gft_status gft_read_recheck(gft_read *read) {
  return behind_wall([&] {
    read->writer->core().check_alive();
    if (!read->sealed.unchanged(read->writer->core()))
      gft::fail(GFT_CHANGED, "slot %llu was evicted while it was being read; recompute the block",
                (unsigned long long)read->sealed.slot);
  });
}

gft_status gft_read_verify(gft_read *read) {
  return behind_wall([&] {
    gft::Core &core = read->writer->core();
    core.check_alive();
    auto digest = core.payload_digest(read->sealed.slot);
    if (!read->sealed.unchanged(core))
      gft::fail(GFT_CHANGED, "slot %llu was evicted while it was being read; recompute the block",
                (unsigned long long)read->sealed.slot);
    if (digest == std::to_array(read->sealed.header.digest)) return;
    read->writer->drop(read->sealed);
    gft::fail(GFT_DIGEST, "the payload in slot %llu of arena %s is not what was sealed; it was dropped, recompute the block",
              (unsigned long long)read->sealed.slot, core.path());
  });
}

void gft_read_free(gft_read *read) { delete read; }

gft_status gft_layout_measure(const gft_region *regions, size_t count, uint64_t *block_bytes, uint64_t *num_blocks) {
  return behind_wall([&] {
    gft::Layout layout = gft::Layout::of(regions, count);
    *block_bytes = layout.block_bytes;
    *num_blocks = layout.num_blocks;
  });
}

gft_status gft_engine_create(gft_writer *writer, const gft_region *regions, size_t count, int threads, gft_engine **out) {
  return behind_wall([&] {
    *out = new gft_engine{gft::Engine::start(writer->writer, gft::Layout::of(regions, count), threads, gft::host_mover)};
  });
}

gft_status gft_engine_store(gft_engine *engine, int64_t job_id, const gft_block *blocks, size_t count) {
  return behind_wall([&] { engine->engine->submit(false, job_id, specs(blocks, count)); });
}

gft_status gft_engine_load(gft_engine *engine, int64_t job_id, const gft_block *blocks, size_t count) {
  return behind_wall([&] { engine->engine->submit(true, job_id, specs(blocks, count)); });
}

gft_status gft_engine_mark(gft_engine *engine, const gft_bytes *hashes, size_t count, gft_mark mark) {
  return behind_wall([&] {
    using Mark = gft::Writer::Mark;
    if (mark < GFT_HOLD || mark > GFT_DROP) gft::fail(GFT_INVALID, "there is no mark %d", static_cast<int>(mark));
    static constexpr Mark kMarks[] = {Mark::hold, Mark::release, Mark::touch, Mark::drop};
    auto names = views(hashes, count);
    engine->engine->mark(std::vector<std::string>(names.begin(), names.end()), kMarks[mark]);
  });
}

gft_status gft_engine_pin(gft_engine *engine, int64_t job_id, const gft_bytes *hashes, size_t count, uint32_t until) {
  return behind_wall([&] {
    auto names = views(hashes, count);
    engine->engine->pin(job_id, std::vector<std::string>(names.begin(), names.end()), until);
  });
}

gft_status gft_engine_cancel(gft_engine *engine, const int64_t *job_ids, size_t count) {
  return behind_wall([&] { engine->engine->cancel(std::vector<int64_t>(job_ids, job_ids + count)); });
}

gft_status gft_engine_poll(gft_engine *engine, void (*each)(void *, const gft_job_result *), void *context) {
  return behind_wall([&] {
    for (const auto &job : engine->engine->poll()) {
      gft_job_result result{job->id,
                            job->load           ? "load"
                            : job->blocks.empty() ? "pin"
                                                  : "store",
                            job->bytes,
                            job->seconds,
                            job->statuses.data(),
                            job->statuses.size(),
                            job->detail.c_str()};
      each(context, &result);
    }
  });
}

gft_status gft_engine_wait(gft_engine *engine, double seconds, int *done) {
  return behind_wall([&] { *done = engine->engine->wait(seconds); });
}

gft_status gft_engine_backlog(gft_engine *engine, uint64_t *blocks, uint64_t *bytes) {
  return behind_wall([&] { engine->engine->backlog(*blocks, *bytes); });
}

gft_status gft_engine_close(gft_engine *engine, double seconds, int *done) {
  return behind_wall([&] { *done = engine->engine->close(seconds); });
}

void gft_engine_free(gft_engine *engine) {
  engine->engine->abandon();
  delete engine;
}
