//! Groups shown to people.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::broker::groups::coordinator::matching;
use crate::broker::{Broker, GroupDescription, GroupError, GroupSummary, MemberDescription};
use crate::groups::{self, Pattern};
use crate::metadata::{ConsumerGroup, Image};
use crate::types::{MemberId, PartitionId, Principal, TopicName, TopicPartition};

impl Broker {
    /// Lists groups by name: at most `limit`, after the name `after`.
    ///
    /// # Errors
    /// Those of looking at the partitions.
    pub async fn list_groups(
        &self,
        principal: &Principal,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<GroupSummary>, GroupError> {
        let image = self.inner.metadata.image();
        let page: Vec<Arc<ConsumerGroup>> = image.groups_from(after).take(limit).cloned().collect();
        let mut summaries = Vec::with_capacity(page.len());
        for group in page {
            summaries.push(GroupSummary {
                group: group.name().clone(),
                status: group.state().status(),
                members: group.state().members.len(),
                topics: topics_of(&image, &group),
                lag: self.lag_of(principal, &group).await,
            });
        }
        Ok(summaries)
    }

    /// Describes a group.
    ///
    /// # Errors
    /// [`GroupError::NotFound`].
    pub async fn group(
        &self,
        principal: &Principal,
        name: &str,
    ) -> Result<GroupDescription, GroupError> {
        let offsets = self.group_offsets(principal, name).await?;
        let group = self.known_group(name)?;
        let image = self.inner.metadata.image();
        let state = group.state();
        let describe =
            |(id, member): (&MemberId, &Arc<groups::Member>)| describe_member(&image, id, member);
        Ok(GroupDescription {
            group: group.name().clone(),
            status: state.status(),
            epoch: state.epoch,
            assignor: state.assignor,
            coordinator: self.inner.metadata.status().leader,
            members: state.members.iter().map(describe).collect(),
            lag: offsets.iter().map(|offset| offset.lag).sum(),
            offsets,
            rebalances: state.rebalances.iter().cloned().collect(),
        })
    }
}

/// Lists the topics that a group reads or has offsets of, by name.
fn topics_of(image: &Image, group: &ConsumerGroup) -> Vec<TopicName> {
    let subscribed =
        group.state().members.values().flat_map(|member| member.selection.names()).cloned();
    let ids: BTreeSet<_> = group.offsets().map(|(of, _)| of.topic).collect();
    let committed = ids.into_iter().filter_map(|id| Some(image.topic(id)?.name.clone()));
    let names: BTreeSet<TopicName> = subscribed.chain(committed).collect();
    names.into_iter().collect()
}

fn describe_member(image: &Image, id: &MemberId, member: &groups::Member) -> MemberDescription {
    let named = |of: &TopicPartition| Some((image.topic(of.topic)?.name.clone(), of.partition));
    // What it is giving up is its own until it has.
    let held = member.assigned.keys().chain(member.revoking.keys());
    let mut assignment: Vec<(TopicName, PartitionId)> = held.filter_map(named).collect();
    assignment.sort();
    let profile = &member.profile;
    // It compiled when the member joined.
    let pattern = member.selection.pattern().and_then(|text| Pattern::parse(text).ok());
    MemberDescription {
        id: id.clone(),
        instance_id: profile.instance_id.clone(),
        kind: profile.kind,
        client: profile.client.clone(),
        node: profile.node,
        epoch: member.epoch,
        status: member.status(),
        topics: member.selection.names().iter().cloned().collect(),
        pattern: member.selection.pattern().map(str::to_owned),
        topics_left_out: pattern.map_or(0, |pattern| matching(image, &pattern).left_out),
        assignment,
        session_timeout: profile.session_timeout(),
        rebalance_timeout: profile.rebalance_timeout(),
    }
}
