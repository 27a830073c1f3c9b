// The life of one stored block: enter (slot taken), copy, leave (sealed or given up).
// A failure becomes the block's status; it never stops the line.
#include "store_line.h"

#include "stream.h"

namespace gft {

std::shared_ptr<StoreLine::Flight> StoreLine::enter(StoreItem item) {
  auto flight = std::make_shared<Flight>();
  flight->item = std::move(item);
  flights_.push_back(flight);
  if (flight->item.kind != StoreItem::Kind::block) return flight;
  const BlockSpec &block = flight->item.job->blocks[flight->item.index];
  try {
    writer_->check_current();
    auto parent = block.parent ? by_hash_.find(*block.parent) : by_hash_.end();
    if (by_hash_.contains(block.hash) || (parent != by_hash_.end() && parent->second->again)) {
      flight->again = true;
      by_hash_.try_emplace(block.hash, flight);
    } else if (parent != by_hash_.end()) {
      flight->parent = parent->second;
      flight->claimed = writer_->reserve(block.hash, block.position, ~uint64_t{0});
      by_hash_[block.hash] = flight;
    } else {
      flight->claimed = writer_->claim(block.hash, block.parent_or_null(), block.position);
      if (flight->claimed)
        by_hash_[block.hash] = flight;
      else
        flight->status = GFT_PRESENT;
    }
  } catch (...) {
    Fail why = current_failure();
    flight->status = why.code;
    flight->detail = why.text;
  }
  return flight;
}

void StoreLine::copy(Flight &flight) const {
  if (!flight.claimed) return;
  const BlockSpec &block = flight.item.job->blocks[flight.item.index];
  Core &core = writer_->core();
  try {
    core.check_alive();
    core.prefault_payload(flight.claimed->slot);
    flight.digest = store_block(core.digest(), layout_, block.block_id, core.payload(flight.claimed->slot));
  } catch (...) {
    Fail why = current_failure();
    flight.status = why.code;
    flight.detail = why.text;
  }
}

void StoreLine::leave(Flight &flight, const Done &done) {
  flight.arrived = true;
  while (!flights_.empty() && flights_.front()->arrived) {
    auto head = flights_.front();
    flights_.pop_front();
    try {
      finish(*head);
    } catch (...) {
      Fail why = current_failure();
      head->status = why.code;
      head->detail = why.text;
    }
    if (head->item.kind == StoreItem::Kind::block) {
      auto named = by_hash_.find(head->item.job->blocks[head->item.index].hash);
      if (named != by_hash_.end() && named->second == head) by_hash_.erase(named);
    }
    head->parent.reset();
    done(*head);
  }
}

void StoreLine::finish(Flight &flight) {
  if (flight.item.kind != StoreItem::Kind::block) {
    std::vector<std::string_view> hashes(flight.item.hashes.begin(), flight.item.hashes.end());
    if (flight.item.kind == StoreItem::Kind::mark)
      writer_->mark(hashes, flight.item.mark);
    else if (writer_->pin(hashes, flight.item.pinned_until) == 0 && flight.item.pinned_until != 0)
      flight.status = GFT_NOT_FOUND;
    return;
  }
  if (flight.again && flight.status == GFT_OK) {
    const BlockSpec &block = flight.item.job->blocks[flight.item.index];
    flight.claimed = writer_->claim(block.hash, block.parent_or_null(), block.position);
    if (!flight.claimed) {
      flight.status = GFT_PRESENT;
      return;
    }
    copy(flight);
  }
  if (!flight.claimed) return;
  if (flight.parent) {
    if (flight.parent->status == GFT_OK) {
      flight.claimed->parent_link = flight.parent->link;
    } else if (flight.status == GFT_OK) {
      flight.status = GFT_NO_PARENT;
      flight.detail = "the parent block was not sealed: " + flight.parent->detail;
    }
  }
  if (flight.status == GFT_OK)
    flight.link = writer_->publish(*flight.claimed, flight.digest);
  else
    writer_->give_up(*flight.claimed);
}

}  // namespace gft
